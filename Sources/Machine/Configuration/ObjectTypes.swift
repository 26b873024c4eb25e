/// The options of an `-object`, which devices or the machine use.
public protocol ObjectOptions: QOMOptions {
  /// Whether `object-add` and `object-del` accept the type. If not, the object exists from the machine's start to its
  /// end.
  static var comesAndGoes: Bool { get }
  /// Whether `object-del` is refused while a device uses the object. If not, the device keeps the resources that it
  /// needs.
  static var staysWhileUsed: Bool { get }
}

extension ObjectOptions {
  public static var comesAndGoes: Bool { true }
  public static var staysWhileUsed: Bool { false }
}

/// Every object type of `-object`. A new type is a file in the folder `Objects` and a line here.
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
