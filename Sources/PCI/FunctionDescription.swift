/// What is fixed about a function: its identity, its BARs and capabilities. The masks follow from it.
public struct FunctionDescription: Sendable {
  /// A capability of the list at 0x34 that the function only stores: a vendor-specific one, for example.
  public struct Capability: Sendable {
    public let id: UInt8
    /// What follows the identifier and the next pointer.
    public let body: [UInt8]
    /// RW bits of the body; shorter means read-only beyond.
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
  /// A bridge has a type 1 header, without BARs and subsystem IDs; else the header is of type 0.
  public var isBridge = false
  /// 0 none, 1 INTA# … 4 INTD#.
  public var interruptPin: UInt8 = 0
  public var baseAddressRegisters: [BaseAddressRegister] = []
  /// nil: a conventional function without a PCI Express capability, and so without FLR.
  public var expressType: ExpressType?
  /// What a port of the fabric has beside.
  public var expressPort: ExpressPort?
  public var msix: MSIX.Layout?
  /// Number of MSI vectors; 0 for none.
  public var msiVectorCount = 0
  public var capabilities: [Capability] = []
  /// From 0x100 on, in this order. Only a PCI Express function has any.
  public var extendedCapabilities: [ExtendedCapability] = []
  /// nil: the space is laid out from what this description says. Else capabilities are what is given, and
  /// `expressType` is not asked for.
  public var configuration: ConfigurationLayout?

  public init(vendorID: UInt16, deviceID: UInt16, classCode: UInt32) {
    self.vendorID = vendorID
    self.deviceID = deviceID
    self.classCode = classCode
  }
}
