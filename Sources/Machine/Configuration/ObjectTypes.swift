/// The options of an `-object`: something that devices or the machine use, not a device itself.
public protocol ObjectOptions: QOMOptions {
  /// Whether `object-add` makes one while the machine runs. If not, the machine has it until its end.
  static var comesAndGoes: Bool { get }
  /// Whether it stays as long as a device uses it. If not, a device that has it keeps what it needs.
  static var staysWhileUsed: Bool { get }
}

extension ObjectOptions {
  public static var comesAndGoes: Bool { true }
  public static var staysWhileUsed: Bool { false }
}

/// Every kind of object that can be asked for. A new kind is a file in `Objects` and a line here.
public enum ObjectTypes {
  public static let all: [any ObjectOptions.Type] = [
    IOMMUFDOptions.self,
    MemoryBackendMemfdOptions.self,
    RNGBuiltinOptions.self,
    RNGRandomOptions.self,
  ]

  public static func named(_ name: String) -> (any ObjectOptions.Type)? {
    all.first { $0.typeName == name || $0.typeAliases.contains(name) }
  }
}
