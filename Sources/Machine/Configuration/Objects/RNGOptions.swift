/// `rng-builtin` and `rng-random`: sources of virtio-rng's entropy.
public protocol EntropyObjectOptions: ObjectOptions {
  var entropySource: RNGBackend { get }
}

/// A source of random bytes.
public enum RNGBackend: Hashable, Sendable {
  /// getrandom(2).
  case host
  case file(path: String)
}

extension RNGBackend {
  /// Finds a device's source among the objects that the device was admitted with.
  public init(of device: VirtioRNGOptions, among objects: [any ObjectOptions]) {
    for case let object as any EntropyObjectOptions in objects where object.id == device.source {
      self = object.entropySource
      return
    }
    self = .host
  }
}

public struct RNGBuiltinOptions: EntropyObjectOptions, Hashable {
  public var id: Identifier?

  public init() {}

  public var entropySource: RNGBackend { .host }

  public static let typeName = "rng-builtin"
  public static let summary = "Entropy from the host's getrandom"
  public static let properties: [Property<Self>] = []
}

public struct RNGRandomOptions: EntropyObjectOptions, Hashable {
  public var id: Identifier?
  public var path = "/dev/urandom"

  public init() {}

  public var entropySource: RNGBackend { .file(path: path) }

  public static let typeName = "rng-random"
  public static let summary = "Entropy from a file or device"
  public static let properties: [Property<Self>] = [
    Property("filename", \.path, .notEmpty, help: "File to read")
  ]
}
