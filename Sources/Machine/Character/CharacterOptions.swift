/// The options of a character device: where bytes come from and go to at the host's end (`-chardev`). Names and
/// defaults are QEMU's.
public protocol CharacterOptions: KindOptions {
  /// Several frontends take turns, by Ctrl-A C.
  var multiplexed: Bool { get set }
}

/// Every kind of character device. A new kind is a file in this folder, a line here, and what opens it
/// (`CharacterEndpoint`).
public enum CharacterKinds {
  public static let all: [any CharacterOptions.Type] = [
    SocketCharacterOptions.self,
    StdioCharacterOptions.self,
    FileCharacterOptions.self,
    NullCharacterOptions.self,
  ]

  public static func named(_ name: String) -> (any CharacterOptions.Type)? {
    all.first { $0.kindName == name || $0.kindAliases.contains(name) }
  }
}

extension CharacterOptions {
  static func multiplexing(_ path: any WritableKeyPath<Self, Bool> & Sendable) -> Property<Self> {
    Property("mux", path, help: "Several frontends share it; Ctrl-A C passes from one to the next")
  }
}

/// `null`: takes everything, gives nothing.
public struct NullCharacterOptions: CharacterOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let kindName = "null"
  public static let summary = "Nobody: output is dropped, input never comes"
  public static let properties: [Property<Self>] = [multiplexing(\.multiplexed)]
}

/// `stdio`: Nestling's own standard input and output.
public struct StdioCharacterOptions: CharacterOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false

  public init() {}

  public static let kindName = "stdio"
  public static let summary = "Standard input and output, with the Ctrl-A commands"
  public static let properties: [Property<Self>] = [
    multiplexing(\.multiplexed),
    Property(
      "signal", settled: false, because: "every key goes to the guest; Ctrl-A X ends Nestling",
      help: "Ctrl-C ends Nestling"),
  ]
}

/// `file`: output alone.
public struct FileCharacterOptions: CharacterOptions, Hashable {
  public var id: Identifier?
  public var multiplexed = false
  public var path = ""
  /// Else the file is emptied first.
  public var append = false

  public init() {}

  public static let kindName = "file"
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
