import Machine

/// The properties of `-drive`.
struct DriveArguments: TypedOptions {
  var file = ""
  var interface = Interface.ide
  var id: Identifier?
  var readOnly = false
  var discard = DiscardWord.ignore
  var locking = OnOffAuto.auto

  /// The value of `if=`: `virtio` adds a device for the drive. QEMU's default is IDE, which Nestling does not have, so
  /// `if=` is required.
  enum Interface: String, PropertyValue {
    case ide, none, virtio

    static var typeName: String { "str" }
    var text: String { rawValue }

    init(text: String) throws(ValueError) {
      switch text {
      case "none": self = .none
      case "virtio": self = .virtio
      default: throw .notOneOf(["none", "virtio"])
      }
    }
  }

  static let properties: [Property<Self>] = [
    Property("file", \.file, .notEmpty, help: "Path of the image"),
    Property("if", \.interface, help: "none for use by a -device; virtio to add a virtio-blk-pci for it"),
    Property("id", \.id, help: "Name for -device ...,drive="),
    Property("format", settled: "raw", because: "only raw images are read", help: "Format of the image"),
    Property("readonly", aliases: ["read-only"], \.readOnly, help: "The guest cannot write"),
    Property("discard", \.discard, help: "Whether the guest's discard frees space: ignore (off) or unmap (on)"),
    Property("file.locking", \.locking, help: "Lock the image against other users, as QEMU does: auto, on, off"),
    Property("media", settled: "disk", because: "there are only disks", help: "Medium"),
    Property(
      "cache", settled: "writeback", because: "the host's page cache is always used", help: "Caching by the host"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "file is missing") { !$0.file.isEmpty },
    PropertyRule(otherwise: "if=ide, QEMU's default, does not exist here: use if=none or if=virtio") {
      $0.interface != .ide
    },
  ]
}

enum DiscardWord: String, ChoiceValue {
  case ignore, off, unmap, on

  var unmaps: Bool { self == .unmap || self == .on }
}

/// The properties of `-blockdev`: a file node, or a raw node over a file node, which `file` names or `file.*`
/// describes.
struct BlockdevArguments: TypedOptions {
  var driver: Driver?
  var nodeName: Identifier?
  var filename: String?
  /// The id of the node below a raw node.
  var file: Identifier?
  var fileDriver: FileDriver?
  var fileFilename: String?
  var readOnly = false
  var discard = DiscardWord.ignore
  var locking: OnOffAuto?
  var fileLocking: OnOffAuto?

  enum Driver: String, ChoiceValue {
    case file, raw
  }

  enum FileDriver: String, ChoiceValue {
    case file
  }

  private static let pageCache = "the host's page cache is always used"

  static let properties: [Property<Self>] = [
    Property("driver", \.driver, help: "file, or raw over a file"),
    Property("node-name", \.nodeName, help: "Name for -device ...,drive="),
    Property("filename", \.filename, .notEmpty, help: "With driver=file: path of the image"),
    Property("file", \.file, help: "With driver=raw: name of the node below"),
    Property("file.driver", \.fileDriver, help: "With driver=raw: driver of the node below, if described here"),
    Property("file.filename", \.fileFilename, .notEmpty, help: "With driver=raw: image of the node below"),
    Property(
      "locking", \.locking, help: "With driver=file: lock the image against other users, as QEMU does: auto, on, off"),
    Property("file.locking", \.fileLocking, help: "With driver=raw: the same for the node below"),
    Property("read-only", \.readOnly, help: "The guest cannot write"),
    Property("discard", \.discard, help: "Whether the guest's discard frees space: ignore (off) or unmap (on)"),
    Property("cache.direct", settled: false, because: pageCache, help: "Bypass the host's page cache"),
    Property("cache.no-flush", settled: false, because: "flushes are always carried out", help: "Ignore flushes"),
  ]

  static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "driver is missing: file or raw") { $0.driver != nil },
    PropertyRule(otherwise: "node-name is missing") { $0.nodeName != nil },
    PropertyRule(otherwise: "driver=file needs filename") { $0.driver != .file || $0.filename != nil },
    PropertyRule(otherwise: "driver=file has no node below: file, file.driver and file.filename go with raw") {
      $0.driver != .file || ($0.file == nil && $0.fileDriver == nil && $0.fileFilename == nil)
    },
    PropertyRule(otherwise: "filename goes with driver=file; raw has file=NODE or file.filename") {
      $0.driver != .raw || $0.filename == nil
    },
    PropertyRule(otherwise: "locking goes with driver=file; raw has file.locking") {
      $0.driver != .raw || $0.locking == nil
    },
    PropertyRule(otherwise: "file.locking goes with file.filename") {
      $0.fileLocking == nil || $0.fileFilename != nil
    },
    PropertyRule(otherwise: "driver=raw needs file=NODE, or file.driver=file with file.filename") {
      $0.driver != .raw || $0.file != nil || ($0.fileDriver != nil && $0.fileFilename != nil)
    },
    PropertyRule(otherwise: "file=NODE and file.driver describe two nodes below, but there can be only one") {
      $0.file == nil || ($0.fileDriver == nil && $0.fileFilename == nil)
    },
  ]

  /// - Parameter earlier: The nodes that `file` may name.
  func node(over earlier: [BlockNode]) -> BlockNode {
    var node = BlockNode(
      id: nodeName?.text ?? "", path: filename ?? fileFilename ?? "", readOnly: readOnly,
      discardUnmaps: discard.unmaps, locking: locking ?? fileLocking ?? .auto, driver: driver == .file ? .file : .raw)
    if let file {
      node.underlying = file.text
      // The check of the whole configuration reports a missing node.
      if let below = earlier.first(where: { $0.id == file.text }) { node = node.laid(over: below) }
    }
    return node
  }
}

/// `-drive` and `-blockdev`.
enum DriveOption {
  @Sendable
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    let drive = try DriveArguments.parsing(text)
    let id = drive.id?.text ?? name(of: drive.interface, in: &draft)
    draft.configuration.blockNodes.append(
      BlockNode(
        id: id, path: drive.file, readOnly: drive.readOnly, discardUnmaps: drive.discard.unmaps,
        locking: drive.locking))
    draft.blockNodeSources.append(draft.source)
    if drive.interface == .virtio {
      var device = VirtioBlockOptions()
      device.drive = id
      draft.configuration.devices.append(device)
      draft.deviceSources.append(draft.source)
    }
  }

  @Sendable
  static func readNode(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    let node = try BlockdevArguments.parsing(text, impliedName: "driver")
    draft.configuration.blockNodes.append(node.node(over: draft.configuration.blockNodes))
    draft.blockNodeSources.append(draft.source)
  }

  /// Returns QEMU's name for a drive without an id: `none0`, `virtio1`.
  private static func name(of interface: DriveArguments.Interface, in draft: inout CommandLineDraft) -> String {
    let number = draft.unnamedDrives[interface, default: 0]
    draft.unnamedDrives[interface] = number + 1
    return interface.text + String(number)
  }
}
