/// A message-signalled interrupt: the memory write by which a device or the IOAPIC signals it.
///
/// Compatibility format: address 0xFEEx_xxxx (Intel SDM, volume 3, "Message Signalled Interrupts"). Remappable format:
/// VT-d 5.1.2.2. Bits 31:8 of an x2APIC destination are in address bits 63:40, as KVM expects them
/// (KVM_X2APIC_API_USE_32BIT_IDS).
public struct InterruptMessage: Hashable, Sendable {
  public var address: UInt64
  public var data: UInt32

  public init(address: UInt64, data: UInt32) {
    self.address = address
    self.data = data
  }
}

/// The route from one interrupt source, such as an MSI-X vector or an IOAPIC pin, to the local APICs.
///
/// An implementation may remap the message and program it into the kernel in advance. So `signal` is cheap, but `set`
/// is not.
public protocol InterruptRoute: AnyObject, Sendable {
  /// Sets the message that `signal` sends; nil while the source is masked or disabled.
  func set(_ message: InterruptMessage?)
  /// Sends the message, if there is one.
  func signal()
}

/// A route whose message others, such as the host's kernel, send by an eventfd.
public protocol EventRoute: InterruptRoute {
  /// Returns the eventfd that sends the message. While there is no message, its signals stay pending. Every call
  /// returns the same eventfd, which stays open as long as the route exists; nil if the host cannot provide one.
  func event() -> Int32?
  /// Whether a signal of the eventfd is pending because there is no message.
  var hasPendingSignal: Bool { get }
}

extension EventRoute {
  public var hasPendingSignal: Bool { false }
}

/// The source of routes: the board, with its interrupt remapper.
public protocol InterruptRouter: AnyObject, Sendable {
  /// Makes a route for one interrupt source.
  /// - Parameter requester: the function that is the source. The remapper reads its ID, which it validates, at each
  ///   use.
  func makeRoute(for requester: Requester) -> any InterruptRoute
}

/// A wire to a pin of the IOAPIC. Several wires may share a pin.
public protocol InterruptLine: AnyObject, Sendable {
  func set(_ asserted: Bool)
}
