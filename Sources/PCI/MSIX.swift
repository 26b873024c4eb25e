import Hardware
import Synchronization

/// MSI-X: a table of messages in a BAR, each with a mask bit and a pending bit. PCI Express Base 7.7.2.
///
/// Lock order: this object's lock, then the route's.
public final class MSIX: Sendable {
  /// The locations of the table and the pending bit array.
  public struct Layout: Hashable, Sendable {
    /// 1 to 2048.
    public let vectorCount: Int
    /// The BAR of the table.
    public let bar: Int
    /// The BAR of the pending bit array.
    public let pendingBar: Int
    public let tableOffset: UInt64
    public let pendingOffset: UInt64

    /// - Parameter pendingBar: nil for the BAR of the table.
    public init(
      vectorCount: Int, bar: Int, tableOffset: UInt64 = 0, pendingBar: Int? = nil, pendingOffset: UInt64
    ) {
      precondition((1...2048).contains(vectorCount), "MSI-X has 1 to 2048 vectors")
      self.pendingBar = pendingBar ?? bar
      self.vectorCount = vectorCount
      self.bar = bar
      self.tableOffset = tableOffset
      self.pendingOffset = pendingOffset
    }

    public var tableSize: UInt64 { UInt64(vectorCount) * 16 }
    public var pendingSize: UInt64 { UInt64((vectorCount + 63) / 64) * 8 }
  }

  private struct Entry {
    var address: UInt64 = 0
    var data: UInt32 = 0
    /// Vector Control bit 0; set after a reset.
    var masked = true
    var pending = false
  }

  private struct State {
    var entries: [Entry]
    var enabled = false
    var functionMasked = false

    func deliverable(_ vector: Int) -> Bool { enabled && !functionMasked && !entries[vector].masked }
  }

  public let layout: Layout
  private let requester: Requester
  private let routes: [any InterruptRoute]
  private let state: Mutex<State>

  init(layout: Layout, requester: Requester, router: any InterruptRouter) {
    self.layout = layout
    self.requester = requester
    routes = (0..<layout.vectorCount).map { _ in router.makeRoute(for: requester) }
    state = Mutex(State(entries: Array(repeating: Entry(), count: layout.vectorCount)))
  }

  /// Whether MSI-X Enable is set. The function then does not use INTx.
  public var isEnabled: Bool { state.withLock { $0.enabled } }

  /// Sends a vector's message, or sets its pending bit while the vector is masked. Ignores numbers past the table.
  public func signal(_ vector: Int) {
    guard vector >= 0, vector < layout.vectorCount, requester.busMasterEnable else { return }
    state.withLock { state in
      guard state.enabled else { return }
      if state.deliverable(vector) { routes[vector].signal() } else { state.entries[vector].pending = true }
    }
  }

  /// Returns the eventfd that sends a vector's message while the vector is enabled and not masked. Otherwise its
  /// signals stay pending, as the pending bit shows, and one message is sent when the vector is unmasked.
  /// - Returns: nil for a number past the table, or if the host cannot provide an eventfd.
  public func notifier(of vector: Int) -> Notifier? {
    guard routes.indices.contains(vector), let route = routes[vector] as? any EventRoute else { return nil }
    return route.event().map { Notifier(descriptor: $0, owner: route) }
  }

  /// Applies Message Control: bits 15 (MSI-X Enable) and 14 (Function Mask).
  func control(enabled: Bool, functionMasked: Bool) {
    state.withLock { state in
      guard enabled != state.enabled || functionMasked != state.functionMasked else { return }
      state.enabled = enabled
      state.functionMasked = functionMasked
      for vector in routes.indices { refresh(vector, &state) }
    }
  }

  /// Sets all routes again after a change of the requester ID, on which the remapping of messages may depend.
  func retarget() {
    state.withLock { state in
      for vector in routes.indices { refresh(vector, &state) }
    }
  }

  /// Sends the pending messages. Called when Bus Master Enable becomes set.
  func sendPending() {
    state.withLock { state in
      for vector in routes.indices where state.entries[vector].pending { refresh(vector, &state) }
    }
  }

  func reset() {
    state.withLock { state in
      for vector in routes.indices {
        state.entries[vector] = Entry()
        routes[vector].set(nil)
      }
      state.enabled = false
      state.functionMasked = false
    }
  }

  /// Updates a vector's route from its entry, and sends the message if it is pending.
  private func refresh(_ vector: Int, _ state: inout State) {
    let entry = state.entries[vector]
    guard state.deliverable(vector) else {
      routes[vector].set(nil)
      return
    }
    routes[vector].set(InterruptMessage(address: entry.address, data: entry.data))
    if entry.pending, requester.busMasterEnable {
      state.entries[vector].pending = false
      routes[vector].signal()
    }
  }

  /// Reads the table or the pending bits.
  /// - Returns: nil if the offset is in neither.
  func read(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64? {
    if bar == layout.bar, let at = Self.index(offset, in: layout.tableOffset, layout.tableSize) {
      return state.withLock { state in
        let words = Self.words(of: state.entries[at / 16])
        return Self.extract(words, at % 16, width)
      }
    }
    if bar == layout.pendingBar, let at = Self.index(offset, in: layout.pendingOffset, layout.pendingSize) {
      return state.withLock { state in
        var value: UInt64 = 0
        for bit in 0..<width.rawValue * 8 {
          let vector = at * 8 + bit
          if vector < state.entries.count { value[bit: bit] = isPending(vector, state) }
        }
        return value
      }
    }
    return nil
  }

  /// Writes the table. The pending bits are read-only.
  /// - Returns: false if the offset is neither in the table nor in the pending bits.
  func write(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) -> Bool {
    if bar == layout.pendingBar, Self.index(offset, in: layout.pendingOffset, layout.pendingSize) != nil { return true }
    guard bar == layout.bar, let at = Self.index(offset, in: layout.tableOffset, layout.tableSize) else { return false }
    // Software uses aligned doublewords or quadwords; the specification leaves others undefined.
    guard (width == .doubleword || width == .quadword), at % width.rawValue == 0 else { return true }
    state.withLock { state in
      let vector = at / 16
      for half in 0..<width.rawValue / 4 {
        let word = UInt32(truncatingIfNeeded: value >> (32 * half))
        switch at % 16 / 4 + half {
        case 0: state.entries[vector].address[bits: 0...31] = UInt64(word & ~3)
        case 1: state.entries[vector].address[bits: 32...63] = UInt64(word)
        case 2: state.entries[vector].data = word
        default: state.entries[vector].masked = word[bit: 0]
        }
      }
      refresh(vector, &state)
    }
    return true
  }

  private func isPending(_ vector: Int, _ state: State) -> Bool {
    if state.entries[vector].pending { return true }
    return !state.deliverable(vector) && (routes[vector] as? any EventRoute)?.hasPendingSignal == true
  }

  private static func index(_ offset: UInt64, in start: UInt64, _ size: UInt64) -> Int? {
    offset >= start && offset - start < size ? Int(offset - start) : nil
  }

  private static func words(of entry: Entry) -> (UInt64, UInt64) {
    (entry.address, UInt64(entry.data) | (entry.masked ? 1 << 32 : 0))
  }

  private static func extract(_ words: (UInt64, UInt64), _ offset: Int, _ width: AccessWidth) -> UInt64 {
    let word = offset < 8 ? words.0 : words.1
    return (word >> (8 * (offset % 8))) & width.allOnes
  }
}
