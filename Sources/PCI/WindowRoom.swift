import Hardware

extension BridgeHeader {
  /// Checks that the BARs of functions below the bridge fit into its windows, as firmware or an operating system would
  /// place them.
  /// - Returns: the first BAR for which there is no room; nil if all fit.
  public func problem(placing functions: [Function]) -> ResourcePlacement.NoRoom? {
    var rooms = [BridgeWindow.io: Room(io), .memory: Room(memory), .prefetchable: Room(prefetchable)]
    let bars = functions.flatMap { function in
      function.description.baseAddressRegisters.map { (function, $0) }
    }.sorted { ($1.1.size, $0.0.requester.id, $0.1.index) < ($0.1.size, $1.0.requester.id, $1.1.index) }
    for (function, bar) in bars {
      let size = bar.space == .io ? bar.size : max(bar.size, 4096)
      let window = BridgeWindow(of: bar)
      // A prefetchable BAR may also go into the other memory window.
      if rooms[window]?.take(size) == true || window == .prefetchable && rooms[.memory]?.take(size) == true { continue }
      return ResourcePlacement.NoRoom(address: function.requester.id, bar: bar.index, size: bar.size)
    }
    return nil
  }

  /// The free part of a window.
  private struct Room {
    private var next: UInt64
    /// The address of the last byte; nil for a closed or a full window.
    private var last: UInt64?

    init(_ window: Window) {
      next = window.base
      last = window.base <= window.limit ? window.limit : nil
    }

    /// Takes a range from the window.
    /// - Parameter size: in bytes, a power of two; also the alignment.
    /// - Returns: false if there is no room.
    mutating func take(_ size: UInt64) -> Bool {
      guard let last else { return false }
      let (rounded, overflow) = next.addingReportingOverflow(size - 1)
      let base = rounded & ~(size - 1)
      guard !overflow, base <= last, size - 1 <= last - base else { return false }
      if base + (size - 1) == last { self.last = nil } else { next = base + size }
      return true
    }
  }
}
