import Synchronization

/// A function's address on PCI Express (bus, device, function), which is also the source-id of its requests.
public struct RequesterID: RawRepresentable, Hashable, Comparable, Sendable, CustomStringConvertible {
  /// bus[15:8] device[7:3] function[2:0]
  public var rawValue: UInt16

  public init(rawValue: UInt16) { self.rawValue = rawValue }

  /// Uses the device modulo 32 and the function modulo 8.
  public init(bus: UInt8, device: UInt8, function: UInt8) {
    rawValue = UInt16(bus) << 8 | UInt16(device & 0x1f) << 3 | UInt16(function & 7)
  }

  public var bus: UInt8 { UInt8(rawValue >> 8) }
  public var device: UInt8 { UInt8(rawValue >> 3 & 0x1f) }
  public var function: UInt8 { UInt8(rawValue & 7) }
  /// Device and function in one byte: the index into VT-d's context tables.
  public var deviceFunction: UInt8 { UInt8(truncatingIfNeeded: rawValue) }

  public static func < (a: RequesterID, b: RequesterID) -> Bool { a.rawValue < b.rawValue }

  /// The address in the format of lspci: `00:02.0`.
  public var description: String {
    func hex(_ value: UInt8) -> String { (value < 16 ? "0" : "") + String(value, radix: 16) }
    return "\(hex(bus)):\(hex(device)).\(function)"
  }
}

/// A function as the source of requests: its address, its Bus Master Enable, and that of the bridges above it.
///
/// Configuration writes change these while other threads make requests, so each is atomic.
public final class Requester: Sendable {
  private let identifier: Atomic<UInt16>
  /// Bit 0: the function's own Bus Master Enable. Bit 1: revoked.
  @usableFromInline let busMaster = Atomic<UInt8>(0)
  private let masterAborted = Atomic<Bool>(false)
  @usableFromInline let upstream: Requester?

  /// - Parameter upstream: the bridge above, which forwards requests while its own Bus Master Enable is set; nil on
  ///   bus 0.
  public init(id: RequesterID, busMasterEnable: Bool = false, upstream: Requester? = nil) {
    self.upstream = upstream
    identifier = Atomic(id.rawValue)
    if busMasterEnable { busMaster.store(1, ordering: .relaxed) }
  }

  public var id: RequesterID {
    get { RequesterID(rawValue: identifier.load(ordering: .relaxed)) }
    set { identifier.store(newValue.rawValue, ordering: .relaxed) }
  }

  /// Whether the function may make requests: Bus Master Enable (Command register bit 2) of the function and of all
  /// bridges above it.
  public var busMasterEnable: Bool {
    // Each request reads it, so it is inlinable. A function on bus 0 needs no call.
    @inlinable get { busMaster.load(ordering: .acquiring) == 1 && (upstream == nil || upstreamForwards) }
    set {
      if newValue {
        busMaster.bitwiseOr(1, ordering: .releasing)
      } else {
        busMaster.bitwiseAnd(~1, ordering: .releasing)
      }
    }
  }

  @usableFromInline var upstreamForwards: Bool { upstream?.busMasterEnable != false }

  /// Stops the function's requests for good: `busMasterEnable` reads as clear from now on.
  public func revoke() { busMaster.bitwiseOr(2, ordering: .sequentiallyConsistent) }

  /// Records that nothing answered a request of the function: Unsupported Request, or Master-Abort on a conventional
  /// bus.
  public func receiveMasterAbort() { masterAborted.store(true, ordering: .releasing) }

  /// Returns whether a request was unanswered since the last call, for Received Master Abort (Status register bit 13).
  public func takeMasterAbort() -> Bool {
    // The plain load avoids the exchange in the common case.
    masterAborted.load(ordering: .relaxed) && masterAborted.exchange(false, ordering: .acquiring)
  }
}
