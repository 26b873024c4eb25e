import Hardware

/// What firmware does for PCI before an operating system starts: numbers the buses, gives each BAR an address in the
/// board's windows, each port windows for what is below it, and enables decoding. Nestling has no firmware, so the board
/// runs this at start and after a reset.
public struct ResourcePlacement: Sendable {
  /// Address ranges that the host bridge forwards to BARs.
  public struct Windows: Hashable, Sendable {
    public var io: Range<UInt64>
    public var memory32: Range<UInt64>
    public var memory64: Range<UInt64>

    public init(io: Range<UInt64>, memory32: Range<UInt64>, memory64: Range<UInt64>) {
      self.io = io
      self.memory32 = memory32
      self.memory64 = memory64
    }
  }

  /// A BAR, or a port's window, for which there is no room.
  public struct NoRoom: Error, Hashable, Sendable {
    public let address: RequesterID
    /// nil for a window.
    public let bar: Int?
    public let size: UInt64
  }

  /// One range that is to be had.
  private struct Wish {
    enum Subject {
      case register(Function, BaseAddressRegister)
      case window(RootPort, BridgeWindow, [(Function, BaseAddressRegister, offset: UInt64)])
    }

    let subject: Subject
    let size: UInt64
    let alignment: UInt64
    let window: BridgeWindow
    /// It may be above 4 GiB.
    let isWide: Bool

    var address: RequesterID {
      switch subject {
      case .register(let function, _): function.requester.id
      case .window(let port, _, _): port.function.requester.id
      }
    }
    var bar: Int? {
      guard case .register(_, let bar) = subject else { return nil }
      return bar.index
    }
    /// Larger ones first, so that alignment wastes little.
    var order: (UInt64, RequesterID, Int) { (alignment, address, bar ?? 8) }

    init(_ function: Function, _ bar: BaseAddressRegister) {
      subject = .register(function, bar)
      window = bar.space == .io ? .io : .memory
      size = Self.room(of: bar)
      alignment = size
      isWide = bar.space == .memory64
    }

    /// - Returns: nil where nothing below the port wants this window, and nothing is reserved.
    init?(_ port: RootPort, _ window: BridgeWindow, _ bars: [(Function, BaseAddressRegister)], reserved: UInt64) {
      var offset: UInt64 = 0
      var placed: [(Function, BaseAddressRegister, offset: UInt64)] = []
      let sorted = bars.filter { BridgeWindow(of: $0.1) == window }.sorted {
        ($1.1.size, $0.0.requester.id, $0.1.index) < ($0.1.size, $1.0.requester.id, $1.1.index)
      }
      for (function, bar) in sorted {
        // Sizes are powers of two and do not grow: each is aligned.
        placed.append((function, bar, offset: offset))
        offset += Self.room(of: bar)
      }
      let wanted = max(offset, reserved)
      guard wanted > 0 else { return nil }
      let (rounded, overflow) = wanted.addingReportingOverflow(window.granule - 1)
      subject = .window(port, window, placed)
      size = overflow ? .max : rounded & ~(window.granule - 1)
      alignment = max(window.granule, sorted.first.map { Self.room(of: $0.1) } ?? 0)
      self.window = window
      isWide = window == .prefetchable
    }

    /// Memory BARs have pages of their own.
    private static func room(of bar: BaseAddressRegister) -> UInt64 {
      bar.space == .io ? bar.size : max(bar.size, 4096)
    }

    func place(at base: UInt64) {
      switch subject {
      case .register(let function, let bar): function.place(bar, at: base)
      case .window(let port, let window, let bars):
        port.open(window, base..<base + size)
        for (function, bar, offset) in bars { function.place(bar, at: base + offset) }
      }
    }
  }

  private var free: Windows

  public init(windows: Windows) { free = windows }

  /// Places everything, and leaves slots on or off. 64-bit BARs go below 4 GiB while there is room, where a bare kernel can reach them, and above
  /// otherwise.
  /// - Parameters:
  ///   - functions: of bus 0, the ports' among them.
  ///   - ports: in order of address, as their buses are numbered.
  public mutating func place(_ functions: [Function], ports: [RootPort] = []) throws(NoRoom) {
    for port in ports { port.prepareSlot() }
    try number(ports)
    var wishes = functions.flatMap { function in
      function.description.baseAddressRegisters.map { Wish(function, $0) }
    }
    for port in ports {
      let below = port.bus.all.flatMap { function in
        function.description.baseAddressRegisters.map { (function, $0) }
      }
      let reserved = port.reservation
      for (window, bytes) in [
        (BridgeWindow.io, reserved.io), (.memory, reserved.memory), (.prefetchable, reserved.prefetchable),
      ] {
        if let wish = Wish(port, window, below, reserved: bytes) { wishes.append(wish) }
      }
    }
    wishes.sort { a, b in (b.order.0, a.order.1, a.order.2) < (a.order.0, b.order.1, b.order.2) }
    for wish in wishes {
      guard let base = take(wish) else { throw NoRoom(address: wish.address, bar: wish.bar, size: wish.size) }
      wish.place(at: base)
      if case .window(let port, let window, _) = wish.subject {
        Self.enable(window == .io ? .ioSpaceEnable : .memorySpaceEnable, of: port.function)
      }
    }
    for function in functions + ports.flatMap(\.bus.all) {
      for bar in function.description.baseAddressRegisters {
        Self.enable(bar.space == .io ? .ioSpaceEnable : .memorySpaceEnable, of: function)
      }
    }
  }

  /// A port's link has the next number, and those that are reserved follow.
  private func number(_ ports: [RootPort]) throws(NoRoom) {
    var last: UInt8 = 0
    for port in ports {
      let (subordinate, overflow) = last.addingReportingOverflow(1 &+ port.reservation.buses)
      guard !overflow, port.reservation.buses < .max else {
        throw NoRoom(address: port.function.requester.id, bar: nil, size: UInt64(port.reservation.buses) + 1)
      }
      port.number(primary: 0, secondary: last + 1, subordinate: subordinate)
      last = subordinate
    }
  }

  private static func enable(_ space: Command, of function: Function) {
    let command = function.readConfiguration(offset: StandardOffset.command, width: .word)
    function.writeConfiguration(
      offset: StandardOffset.command, width: .word, value: command | UInt64(space.rawValue))
  }

  private mutating func take(_ wish: Wish) -> UInt64? {
    if wish.window == .io { return Self.take(wish, from: &free.io) }
    if let base = Self.take(wish, from: &free.memory32) { return base }
    return wish.isWide ? Self.take(wish, from: &free.memory64) : nil
  }

  private static func take(_ wish: Wish, from range: inout Range<UInt64>) -> UInt64? {
    let (rounded, overflow) = range.lowerBound.addingReportingOverflow(wish.alignment - 1)
    guard !overflow else { return nil }
    let base = rounded & ~(wish.alignment - 1)
    guard base < range.upperBound, wish.size <= range.upperBound - base else { return nil }
    range = base + wish.size..<range.upperBound
    return base
  }
}
