import Hardware
import Synchronization

/// MSI with a 64-bit address and per-vector masking: PCI Express Base 7.7.1.
///
/// Lock order: this object's lock, then the route's.
public final class MSI: Sendable {
  private struct State {
    var enabled = false
    /// Multiple Message Enable: log2 of the number of vectors that software granted.
    var granted = 0
    var address: UInt64 = 0
    var data: UInt16 = 0
    var mask: UInt32 = 0
    var pending: UInt32 = 0
  }

  /// 1, 2, 4, 8, 16 or 32.
  public let vectorCount: Int
  private let requester: Requester
  private let routes: [any InterruptRoute]
  private let state = Mutex(State())

  init(vectorCount: Int, requester: Requester, router: any InterruptRouter) {
    precondition(vectorCount.nonzeroBitCount == 1 && vectorCount <= 32, "MSI has 1, 2, 4, 8, 16 or 32 vectors")
    self.vectorCount = vectorCount
    self.requester = requester
    routes = (0..<vectorCount).map { _ in router.makeRoute(for: requester) }
  }

  /// Whether MSI Enable is set. The function then does not use INTx.
  public var isEnabled: Bool { state.withLock { $0.enabled } }

  /// Sends a vector's message, or sets its pending bit while the vector is masked. Vectors beyond the granted ones map
  /// to granted vectors.
  public func signal(_ vector: Int) {
    guard vector >= 0, vector < vectorCount, requester.busMasterEnable else { return }
    state.withLock { state in
      guard state.enabled else { return }
      let sent = vector & (1 << state.granted - 1)
      if state.mask[bit: sent] { state.pending[bit: sent] = true } else { routes[sent].signal() }
    }
  }

  /// The capability's bytes after identifier and next pointer: control, address, upper address, data, mask, pending.
  var capability: (body: [UInt8], writable: [UInt8]) {
    var body: [UInt8] = []
    let capable = UInt16(vectorCount.trailingZeroBitCount)
    body.append(littleEndian: UInt16(1 << 7 | 1 << 8) | capable << 1)  // 64-bit, per-vector masking
    body += [UInt8](repeating: 0, count: 20)
    let writable = [UInt8](
      littleEndian: UInt16(0x71), UInt32(0xffff_fffc), UInt32.max, UInt32(0xffff), UInt32.lowBits(vectorCount))
    return (body, writable)
  }

  /// Applies the registers of the capability at `offset`, and sends pending messages that are no longer masked.
  func update(from space: ConfigurationSpace, at offset: Int) {
    let control = space.get(UInt16.self, offset + 2)
    state.withLock { state in
      state.enabled = control[bit: 0]
      state.granted = min(Int(control[bits: 4...6]), vectorCount.trailingZeroBitCount)
      state.address = UInt64(space.get(UInt32.self, offset + 4)) | UInt64(space.get(UInt32.self, offset + 8)) << 32
      state.data = space.get(UInt16.self, offset + 12)
      state.mask = space.get(UInt32.self, offset + 16)
      for vector in routes.indices {
        guard state.enabled, vector < 1 << state.granted else {
          routes[vector].set(nil)
          continue
        }
        let low = UInt16.lowBits(state.granted)
        routes[vector].set(
          InterruptMessage(address: state.address, data: UInt32(state.data & ~low | UInt16(vector) & low)))
        if state.pending[bit: vector], !state.mask[bit: vector], requester.busMasterEnable {
          state.pending[bit: vector] = false
          routes[vector].signal()
        }
      }
    }
  }

  var pending: UInt32 { state.withLock { $0.pending } }

  func reset() {
    state.withLock { state in
      state = State()
      for route in routes { route.set(nil) }
    }
  }
}
