import Hardware

/// The PCI setup that firmware performs before an operating system starts: it numbers the buses, assigns each BAR an
/// address in the board's windows, opens each port's windows for the BARs below it, and enables decoding. Nestling has no
/// firmware, so the board runs this at start and after a reset.
public struct ResourcePlacement: Sendable {
  /// The address ranges that the host bridge forwards to BARs.
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

  /// There is no room for a BAR, or for a port's window.
  public struct NoRoom: Error, Hashable, Sendable {
    public let address: RequesterID
    /// The BAR's index; nil for a window.
    public let bar: Int?
    public let size: UInt64
  }

  /// A request for one range of addresses.
  private struct Wish {
    enum Subject {
      case register(Function, BaseAddressRegister)
      case window(RootPort, BridgeWindow, [(Function, BaseAddressRegister, offset: UInt64)])
    }

    let subject: Subject
    let size: UInt64
    let alignment: UInt64
    let window: BridgeWindow
    /// Whether the range may be above 4 GiB.
    let isWide: Bool
    /// Whether the range should be above 4 GiB: it is empty so far, and others may need the room below.
    var prefersHigh = false

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
    /// The sort key. Larger alignments come first, so that alignment wastes little.
    var order: (UInt64, RequesterID, Int) { (alignment, address, bar ?? 8) }

    func isOf(_ port: RootPort, _ window: BridgeWindow) -> Bool {
      guard case .window(let owner, let own, _) = subject else { return false }
      return owner === port && own == window
    }

    init(_ function: Function, _ bar: BaseAddressRegister) {
      subject = .register(function, bar)
      window = bar.space == .io ? .io : .memory
      size = Self.room(of: bar)
      alignment = size
      isWide = bar.space == .memory64
    }

    /// - Returns: nil if no BAR below the port belongs into this window, and nothing is reserved.
    init?(_ port: RootPort, _ window: BridgeWindow, _ bars: [(Function, BaseAddressRegister)], reserved: UInt64) {
      var offset: UInt64 = 0
      var placed: [(Function, BaseAddressRegister, offset: UInt64)] = []
      let sorted = bars.filter { BridgeWindow(of: $0.1) == window }.sorted {
        ($1.1.size, $0.0.requester.id, $0.1.index) < ($0.1.size, $1.0.requester.id, $1.1.index)
      }
      for (function, bar) in sorted {
        // Sizes are powers of two in descending order, so each offset is aligned.
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
      prefersHigh = isWide && sorted.isEmpty
    }

    /// Returns the size to reserve for a BAR. Memory BARs do not share pages.
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

  /// Numbers all buses, places all BARs and windows, and switches slots on or off. 64-bit BARs go below 4 GiB, where a
  /// bare kernel can reach them, while there is room.
  /// - Parameters:
  ///   - functions: all functions of bus 0, including the ports.
  ///   - ports: the ports sorted by address, in which order their buses get numbers.
  public mutating func place(_ functions: [Function], ports: [RootPort] = []) throws(NoRoom) {
    for port in ports { port.prepareSlot() }
    try number(ports)
    for (wish, base) in try plan(functions, ports) {
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

  /// The bytes of each memory window that a port with hotplug gets for later devices, as in SeaBIOS. I/O windows get only
  /// the reserved bytes.
  static let hotplugRoom: UInt64 = 2 << 20

  /// Finds an address for every request. If the room does not suffice with all reserves for hotplug, present devices come
  /// first, then the empty ports in order of address, with 1 MiB each below 4 GiB.
  private mutating func plan(_ functions: [Function], _ ports: [RootPort]) throws(NoRoom) -> [(Wish, base: UInt64)] {
    let all = free
    let room = [BridgeWindow.memory: Self.hotplugRoom, .prefetchable: Self.hotplugRoom]
    if let plan = try? takeAll(wishes(functions, ports, hotplugRoom: room)) { return plan }
    free = all
    var plan = try takeAll(wishes(functions, ports, hotplugRoom: [:]))
    let least = BridgeWindow.memory.granule
    for (window, room) in [(BridgeWindow.memory, least), (.prefetchable, Self.hotplugRoom)] {
      for port in ports where !plan.contains(where: { $0.0.isOf(port, window) }) {
        let bytes = Self.reserved(window, of: port, hotplugRoom: [window: room])
        if let wish = Wish(port, window, [], reserved: bytes), let base = take(wish) { plan.append((wish, base)) }
      }
    }
    return plan
  }

  private mutating func takeAll(_ wishes: [Wish]) throws(NoRoom) -> [(Wish, base: UInt64)] {
    var plan: [(Wish, base: UInt64)] = []
    for wish in wishes {
      guard let base = take(wish) else { throw NoRoom(address: wish.address, bar: wish.bar, size: wish.size) }
      plan.append((wish, base))
    }
    return plan
  }

  /// Returns all requests in the order of their placement.
  private func wishes(_ functions: [Function], _ ports: [RootPort], hotplugRoom: [BridgeWindow: UInt64]) -> [Wish] {
    var wishes = functions.flatMap { function in
      function.description.baseAddressRegisters.map { Wish(function, $0) }
    }
    for port in ports {
      let below = port.bus.all.flatMap { function in
        function.description.baseAddressRegisters.map { (function, $0) }
      }
      for window in BridgeWindow.allCases {
        let reserved = Self.reserved(window, of: port, hotplugRoom: hotplugRoom)
        if let wish = Wish(port, window, below, reserved: reserved) { wishes.append(wish) }
      }
    }
    return wishes.sorted { a, b in (b.order.0, a.order.1, a.order.2) < (a.order.0, b.order.1, b.order.2) }
  }

  /// Returns the bytes to reserve in a port's window.
  /// - Parameter hotplugRoom: the default for a port with hotplug.
  private static func reserved(
    _ window: BridgeWindow, of port: RootPort, hotplugRoom: [BridgeWindow: UInt64]
  ) -> UInt64 {
    let standard = port.hotplug == nil ? 0 : hotplugRoom[window] ?? 0
    return switch window {
    case .io: port.reservation.io
    case .memory: port.reservation.memory ?? standard
    case .prefetchable: port.reservation.prefetchable ?? standard
    }
  }

  /// Numbers the buses: each port's link gets the next number; its reserved numbers follow.
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
    if wish.prefersHigh, let base = Self.take(wish, from: &free.memory64) { return base }
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
