/// `rng-builtin` and `rng-random`: where virtio-rng's entropy comes from.
public struct RNGBuiltinOptions: ObjectOptions, Hashable {
  public var id: Identifier?

  public init() {}

  public static let kindName = "rng-builtin"
  public static let summary = "Entropy from the host's getrandom"
  public static let properties: [Property<Self>] = []
}

public struct RNGRandomOptions: ObjectOptions, Hashable {
  public var id: Identifier?
  public var path = "/dev/urandom"

  public init() {}

  public static let kindName = "rng-random"
  public static let summary = "Entropy from a file or device"
  public static let properties: [Property<Self>] = [
    Property("filename", \.path, .notEmpty, help: "File to read")
  ]
}
