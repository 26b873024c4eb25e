/// The options of a character device: where bytes come from and go to at the host's end (`-chardev`). Names and
/// defaults are QEMU's.
public protocol ChardevOptions: QOMOptions {
  /// Several frontends take turns, by Ctrl-A C.
  var multiplexed: Bool { get set }
}

/// Every kind of character device. A new kind is a file in this folder, a line here, and what opens it
/// (`ChardevEndpoint`).
public enum ChardevTypes {
  public static let all: [any ChardevOptions.Type] = [
    SocketChardevOptions.self,
    StdioChardevOptions.self,
    FileChardevOptions.self,
    NullChardevOptions.self,
  ]

  public static func named(_ name: String) -> (any ChardevOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}

extension ChardevOptions {
  static func multiplexing(_ path: any WritableKeyPath<Self, Bool> & Sendable) -> Property<Self> {
    Property("mux", path, help: "Several frontends share it; Ctrl-A C passes from one to the next")
  }
}

/// `null`: takes everything, gives nothing.
public struct NullChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let typeName = "null"
  public static let summary = "Nobody: output is dropped, input never comes"
  public static let properties: [Property<Self>] = [multiplexing(\.multiplexed)]
}

/// `stdio`: Nestling's own standard input and output.
public struct StdioChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let typeName = "stdio"
  public static let summary = "Standard input and output, with the Ctrl-A commands"
  public static let properties: [Property<Self>] = [
    multiplexing(\.multiplexed),
    Property(
      "signal", settled: false, because: "every key goes to the guest; Ctrl-A X ends Nestling",
      help: "Ctrl-C ends Nestling"),
  ]
}

/// `file`: output alone.
public struct FileChardevOptions: ChardevOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false
  public var path = ""
  /// Else the file is emptied first.
  public var append = false

  public init() {}

  public static let typeName = "file"
  public static let summary = "Output into a file"
  public static let properties: [Property<Self>] = [
    Property("path", \.path, help: "File that gets the output"),
    Property("append", \.append, help: "Keep what is in the file"),
    multiplexing(\.multiplexed),
  ]
  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "chardev: file: no filename given") { !$0.path.isEmpty }
  ]
}
