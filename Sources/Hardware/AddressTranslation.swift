// Messages of Address Translation Services, and the PASID prefix (PCI Express Base, sections 6.20, 10.2 and 10.3).

/// The PASID TLP prefix of a request: PCI Express Base, section 6.20.2.
public struct PASIDPrefix: Hashable, Sendable {
  /// The PASID: 20 bits.
  public var pasid: UInt32
  /// Privileged Mode Requested (PR).
  public var isPrivileged: Bool
  /// Execute Requested (ER).
  public var executes: Bool

  public init(pasid: UInt32, isPrivileged: Bool = false, executes: Bool = false) {
    self.pasid = pasid & 0xf_ffff
    self.isPrivileged = isPrivileged
    self.executes = executes
  }
}

/// The page in the completion of a translation request: PCI Express Base 10.2.3.
public struct DeviceTranslation: Hashable, Sendable {
  /// The first translated address of the page.
  public var address: UInt64
  /// Log2 of the page's size in bytes, 12 or more.
  public var shift: Int
  public var isReadable: Bool
  public var isWritable: Bool
  /// Exe: whether instruction fetches are permitted.
  public var isExecutable: Bool
  /// Priv: whether the rights apply to privileged requests.
  public var isPrivileged: Bool
  /// U: whether only untranslated requests may access the page.
  public var isUntranslatedOnly: Bool
  /// N: whether accesses are not snooped.
  public var isNonSnooped: Bool

  public init(
    address: UInt64, shift: Int, isReadable: Bool, isWritable: Bool, isExecutable: Bool = false,
    isPrivileged: Bool = false, isUntranslatedOnly: Bool = false, isNonSnooped: Bool = false
  ) {
    self.address = address
    self.shift = shift
    self.isReadable = isReadable
    self.isWritable = isWritable
    self.isExecutable = isExecutable
    self.isPrivileged = isPrivileged
    self.isUntranslatedOnly = isUntranslatedOnly
    self.isNonSnooped = isNonSnooped
  }

  /// Returns the completion for a page without access rights. The function may cache only the lack of rights.
  public static func noAccess(isPrivileged: Bool = false) -> DeviceTranslation {
    DeviceTranslation(address: 0, shift: 12, isReadable: false, isWritable: false, isPrivileged: isPrivileged)
  }
}

/// The completion of a translation request.
public enum TranslationCompletion: Hashable, Sendable {
  case success(DeviceTranslation)
  /// UR: software does not permit translation requests of this function.
  case unsupportedRequest
  /// CA: an error occurred during the translation.
  case completerAbort
}

/// An Invalidate Request message: PCI Express Base 10.3.1.
public struct InvalidateRequest: Hashable, Sendable {
  /// ITag: 0 to 31.
  public var tag: UInt8
  /// The PASID whose translations become invalid; nil for requests without PASID, or for every PASID if `isGlobal`.
  public var pasid: UInt32?
  /// Whether Global Invalidate is set.
  public var isGlobal: Bool
  public var first: UInt64
  /// The last address of the range, inclusive.
  public var last: UInt64

  public init(tag: UInt8, pasid: UInt32?, isGlobal: Bool, first: UInt64, last: UInt64) {
    self.tag = tag
    self.pasid = pasid
    self.isGlobal = isGlobal
    self.first = first
    self.last = last
  }
}
