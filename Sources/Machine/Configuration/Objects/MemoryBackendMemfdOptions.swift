/// `memory-backend-memfd`: guest RAM from memfd_create(2), which other processes can map, optionally in huge pages.
public struct MemoryBackendMemfdOptions: ObjectOptions, Hashable {
  public var id: Identifier?
  /// The size in bytes; nil until the option is given.
  public var size: ByteCount?
  public var hugePages = false
  /// The size of a huge page in bytes; nil for the host's default. Refused without `hugePages`.
  public var hugePageSize: ByteCount?

  public init() {}

  public static let typeName = "memory-backend-memfd"
  public static let comesAndGoes = false
  public static let summary = "Guest RAM, optionally in huge pages (-machine memory-backend=ID)"

  public static let properties: [Property<Self>] = [
    Property("size", \.size, help: "Bytes of RAM"),
    Property("hugetlb", \.hugePages, help: "Use huge pages"),
    Property(
      "hugetlbsize", \.hugePageSize, .powerOfTwo(within: 4096...0x1000_0000_0000),
      help: "Size of a huge page; default: the host's"),
    Property("share", settled: true, because: "a memfd is always mapped shared", help: "Map it shared"),
  ]

  public static let rules: [PropertyRule<Self>] = [
    PropertyRule(otherwise: "size is missing") { $0.size != nil },
    PropertyRule(otherwise: "hugetlbsize needs hugetlb=on") { $0.hugePageSize == nil || $0.hugePages },
  ]
}
