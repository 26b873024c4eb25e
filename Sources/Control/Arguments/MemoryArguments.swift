import Machine

/// The properties of `-m`.
struct MemoryArguments: TypedOptions {
  var size: MebibyteSize?

  static let properties: [Property<Self>] = [
    Property("size", \.size, help: "Size of RAM, in MiB if it has no suffix")
  ]
}

/// A size. A number without a suffix counts MiB.
struct MebibyteSize: PropertyValue {
  var bytes: UInt64

  static var typeName: String { ByteCount.typeName }

  init(text: String) throws(ValueError) {
    guard let bytes = NumberText.size(text.utf8, unit: 1 << 20) else { throw .notSize }
    self.bytes = bytes
  }

  var text: String { ByteCount(bytes).text }
}
