import Hardware

/// The free part of a window of addresses.
struct WindowRoom {
  private var next: UInt64
  /// The address of the last byte; nil if no bytes are free.
  private var last: UInt64?

  /// - Parameter last: the address of the last byte. Less than `first` for a closed window.
  init(first: UInt64, last: UInt64) {
    next = first
    self.last = first <= last ? last : nil
  }

  init(_ range: Range<UInt64>) {
    next = range.lowerBound
    last = range.isEmpty ? nil : range.upperBound - 1
  }

  /// Takes the lowest free range.
  /// - Parameters:
  ///   - size: in bytes, not zero.
  ///   - alignment: in bytes, a power of two.
  /// - Returns: the range's address; nil if there is no room.
  mutating func take(_ size: UInt64, alignment: UInt64) -> UInt64? {
    guard let last else { return nil }
    let (rounded, overflow) = next.addingReportingOverflow(alignment - 1)
    let base = rounded & ~(alignment - 1)
    guard !overflow, base <= last, size - 1 <= last - base else { return nil }
    if base + (size - 1) == last { self.last = nil } else { next = base + size }
    return base
  }
}

extension [Function] {
  /// The BARs of the functions, with larger ones first, so that alignment wastes no room.
  var baseAddressRegisters: [(function: Function, bar: BaseAddressRegister)] {
    flatMap { function in
      function.description.baseAddressRegisters.map { (function: function, bar: $0) }
    }.sorted { a, b in
      (b.bar.size, a.function.requester.id, a.bar.index) < (a.bar.size, b.function.requester.id, b.bar.index)
    }
  }
}

extension BridgeHeader {
  /// Checks that the BARs of functions below the bridge fit into its windows, as firmware or an operating system would
  /// place them.
  /// - Returns: the first BAR for which there is no room; nil if all fit.
  public func problem(placing functions: [Function]) -> ResourcePlacement.NoRoom? {
    func room(_ window: Window) -> WindowRoom { WindowRoom(first: window.base, last: window.limit) }
    var rooms = [BridgeWindow.io: room(io), .memory: room(memory), .prefetchable: room(prefetchable)]
    for (function, bar) in functions.baseAddressRegisters {
      let window = BridgeWindow(of: bar)
      // A prefetchable BAR may also go into the other memory window.
      let windows = window == .prefetchable ? [window, .memory] : [window]
      guard windows.contains(where: { rooms[$0]?.take(bar.room, alignment: bar.room) != nil }) else {
        return ResourcePlacement.NoRoom(address: function.requester.id, bar: bar.index, size: bar.size)
      }
    }
    return nil
  }
}
