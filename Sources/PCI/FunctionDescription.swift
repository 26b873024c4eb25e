/// The fixed properties of a function: its identity, BARs and capabilities. `Function` derives its registers from it.
public struct FunctionDescription: Sendable {
  /// A capability of the list at 0x34 that the function only stores: a vendor-specific one, for example.
  public struct Capability: Sendable {
    public let id: UInt8
    /// The bytes after the identifier and the next pointer.
    public let body: [UInt8]
    /// The RW bits of the body; missing bytes are read-only.
    public let writable: [UInt8]

    public init(id: UInt8, body: [UInt8], writable: [UInt8] = []) {
      self.id = id
      self.body = body
      self.writable = writable
    }
  }

  public var vendorID: UInt16
  public var deviceID: UInt16
  public var revisionID: UInt8 = 0
  /// Base class, sub-class, programming interface: 0x018000 and so on.
  public var classCode: UInt32
  public var subsystemVendorID: UInt16 = 0
  public var subsystemID: UInt16 = 0
  /// Whether the header is of type 1: a bridge's, without BARs and subsystem IDs. Otherwise it is of type 0.
  public var isBridge = false
  /// The pin of INTx: 1 for INTA# to 4 for INTD#; 0 for none.
  public var interruptPin: UInt8 = 0
  public var baseAddressRegisters: [BaseAddressRegister] = []
  /// The Device/Port Type; nil for a conventional function without a PCI Express capability, and so without FLR.
  public var expressType: ExpressType?
  /// The numbers of a port of the fabric.
  public var expressPort: ExpressPort?
  public var msix: MSIX.Layout?
  /// The number of MSI vectors; 0 for none.
  public var msiVectorCount = 0
  public var capabilities: [Capability] = []
  /// The capabilities from 0x100 on, in order. Only a PCI Express function has any.
  public var extendedCapabilities: [ExtendedCapability] = []
  /// A given layout of configuration space, with capabilities; `expressType` is then ignored. If this is nil,
  /// `Function` lays out the space from this description.
  public var configuration: ConfigurationLayout?

  public init(vendorID: UInt16, deviceID: UInt16, classCode: UInt32) {
    self.vendorID = vendorID
    self.deviceID = deviceID
    self.classCode = classCode
  }
}

/// A given layout of configuration space, for a passed-through function of the host: its capabilities stay at the
/// offsets that its drivers may expect. `Function` overwrites the header, BARs, MSI-X and MSI in it.
public struct ConfigurationLayout: Sendable {
  /// Identity, capabilities and their list, with the values after a reset.
  public var space: ConfigurationSpace
  /// Offset of the MSI-X capability in `space`, or nil. `FunctionDescription.msix` determines its content.
  public var msixOffset: Int?
  /// Offset of the MSI capability, with room for its 24 bytes (64-bit addresses and per-vector masking), or nil.
  public var msiOffset: Int?
  public var expressOffset: Int?
  /// Offset of the Power Management capability (PCI Power Management 1.2, section 3.2), or nil. `space` defines its
  /// control register. The BARs decode only in D0.
  public var powerManagementOffset: Int?

  public init(space: ConfigurationSpace) { self.space = space }
}
