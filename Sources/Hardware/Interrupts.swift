/// A message-signalled interrupt: the write that a device, or the IOAPIC, would make.
///
/// Compatibility format: address 0xFEEx_xxxx as in the Intel SDM, volume 3, "Message Signalled
/// Interrupts"; remappable format: VT-d 5.1.2.2. An x2APIC destination's bits 31:8 stand in address
/// bits 63:40, as KVM takes them (KVM_X2APIC_API_USE_32BIT_IDS).
public struct InterruptMessage: Hashable, Sendable {
  public var address: UInt64
  public var data: UInt32

  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

/// A way to the local APICs for one source: a vector of MSI-X, a pin of the IOAPIC.
///
/// The implementation may keep the message resolved (remapped, and programmed into the kernel), so
/// `signal` is cheap and `set` is not.
public protocol InterruptRoute: AnyObject, Sendable {
  /// Changes what `signal` sends; nil while the source is masked or disabled.
  func set(_ message: InterruptMessage?)
  /// Sends the message. Without one, nothing happens.
  func signal()
}

/// What routes come from: the board, by way of the interrupt remapper.
public protocol InterruptRouter: AnyObject, Sendable {
  /// - Parameter requester: the source-id that the remapper validates is read from it at every use.
  func makeRoute(for requester: Requester) -> any InterruptRoute
}

/// A wire: a pin of the IOAPIC, shared by what drives it or not.
public protocol InterruptLine: AnyObject, Sendable {
  func set(_ asserted: Bool)
}
