/// `rng-builtin` and `rng-random`: sources of virtio-rng's entropy.
public protocol EntropyObjectOptions: ObjectOptions {
  var entropySource: EntropySource { get }
}

/// A source of random bytes.
public enum EntropySource: Hashable, Sendable {
  /// getrandom(2).
  case host
  case file(path: String)
}

extension EntropySource {
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

  public var entropySource: EntropySource { .host }

  public static let typeName = "rng-builtin"
  public static let summary = "Entropy from the host's getrandom"
  public static let properties: [Property<Self>] = []
}

public struct RNGRandomOptions: EntropyObjectOptions, Hashable {
  public var id: Identifier?
  public var path = "/dev/urandom"

  public init() {}

  public var entropySource: EntropySource { .file(path: path) }

  public static let typeName = "rng-random"
  public static let summary = "Entropy from a file or device"
  public static let properties: [Property<Self>] = [
    Property("filename", \.path, .notEmpty, help: "File to read")
  ]
}
