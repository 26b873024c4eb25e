import Hardware

/// The PCI setup that firmware performs before an operating system starts: it numbers the buses, assigns each BAR an
/// address in the board's windows, opens each port's windows for the BARs below it, and enables decoding. Nestling has
/// no firmware, so the board runs this at start and after a reset.
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
  private struct RangeRequest {
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
    /// Whether the range should be above 4 GiB: it contains no BAR yet, and other requests may need the room below.
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
      size = bar.room
      alignment = size
      isWide = bar.space == .memory64
    }

    /// - Parameter bars: all BARs below the port, larger ones first.
    /// - Returns: nil if no BAR below the port belongs in this window and no bytes are reserved.
    init?(
      _ port: RootPort, _ window: BridgeWindow, _ bars: [(function: Function, bar: BaseAddressRegister)],
      reserved: UInt64
    ) {
      var offset: UInt64 = 0
      var placed: [(Function, BaseAddressRegister, offset: UInt64)] = []
      let own = bars.filter { BridgeWindow(of: $0.bar) == window }
      for (function, bar) in own {
        // Sizes are powers of two in descending order, so each offset is aligned.
        placed.append((function, bar, offset: offset))
        offset += bar.room
      }
      let wanted = max(offset, reserved)
      guard wanted > 0 else { return nil }
      let (rounded, overflow) = wanted.addingReportingOverflow(window.granule - 1)
      subject = .window(port, window, placed)
      size = overflow ? .max : rounded & ~(window.granule - 1)
      alignment = max(window.granule, own.first?.bar.room ?? 0)
      self.window = window
      isWide = window == .prefetchable
      prefersHigh = isWide && own.isEmpty
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

  private typealias Plan = [(RangeRequest, base: UInt64)]

  private var io: WindowRoom
  private var memory32: WindowRoom
  private var memory64: WindowRoom

  public init(windows: Windows) {
    io = WindowRoom(windows.io)
    memory32 = WindowRoom(windows.memory32)
    memory64 = WindowRoom(windows.memory64)
  }

  /// Numbers all buses, places all BARs and windows, and switches slots on or off. 64-bit BARs go below 4 GiB as long
  /// as there is room, because a bare kernel can reach them there.
  /// - Parameters:
  ///   - functions: all functions of bus 0, including the ports.
  ///   - ports: the ports, sorted by address. Their buses get numbers in this order.
  public mutating func place(_ functions: [Function], ports: [RootPort] = []) throws(NoRoom) {
    for port in ports { port.prepareSlot() }
    try number(ports)
    for (request, base) in try plan(functions, ports) {
      request.place(at: base)
      if case .window(let port, let window, _) = request.subject {
        Self.enable(window == .io ? .ioSpaceEnable : .memorySpaceEnable, of: port.function)
      }
    }
    for function in functions + ports.flatMap(\.bus.all) {
      for bar in function.description.baseAddressRegisters {
        Self.enable(bar.space == .io ? .ioSpaceEnable : .memorySpaceEnable, of: function)
      }
    }
  }

  /// The bytes that a port with hotplug gets in each memory window for later devices, as in SeaBIOS. I/O windows get
  /// only the reserved bytes.
  static let hotplugRoom: UInt64 = 2 << 20

  /// Finds an address for every request. If the room does not suffice for all reserves for hotplug, the present devices
  /// get addresses first. Then each missing window gets a reserve, in order of the ports' addresses, while there is
  /// room: 1 MiB below 4 GiB, and `hotplugRoom` for prefetchable BARs.
  private mutating func plan(_ functions: [Function], _ ports: [RootPort]) throws(NoRoom) -> Plan {
    let all = self
    let room = [BridgeWindow.memory: Self.hotplugRoom, .prefetchable: Self.hotplugRoom]
    if let plan = try? takeAll(requests(functions, ports, hotplugRoom: room)) { return plan }
    self = all
    var plan = try takeAll(requests(functions, ports, hotplugRoom: [:]))
    let least = BridgeWindow.memory.granule
    for (window, room) in [(BridgeWindow.memory, least), (.prefetchable, Self.hotplugRoom)] {
      for port in ports where !plan.contains(where: { $0.0.isOf(port, window) }) {
        let bytes = Self.reserved(window, of: port, hotplugRoom: [window: room])
        if let request = RangeRequest(port, window, [], reserved: bytes), let base = take(request) {
          plan.append((request, base))
        }
      }
    }
    return plan
  }

  private mutating func takeAll(_ requests: [RangeRequest]) throws(NoRoom) -> Plan {
    var plan: Plan = []
    for request in requests {
      guard let base = take(request) else {
        throw NoRoom(address: request.address, bar: request.bar, size: request.size)
      }
      plan.append((request, base))
    }
    return plan
  }

  /// Returns all requests in the order of their placement.
  private func requests(
    _ functions: [Function], _ ports: [RootPort], hotplugRoom: [BridgeWindow: UInt64]
  ) -> [RangeRequest] {
    var requests = functions.baseAddressRegisters.map { RangeRequest($0.function, $0.bar) }
    for port in ports {
      let below = port.bus.all.baseAddressRegisters
      for window in BridgeWindow.allCases {
        let reserved = Self.reserved(window, of: port, hotplugRoom: hotplugRoom)
        if let request = RangeRequest(port, window, below, reserved: reserved) { requests.append(request) }
      }
    }
    return requests.sorted { a, b in (b.order.0, a.order.1, a.order.2) < (a.order.0, b.order.1, b.order.2) }
  }

  /// Returns the bytes to reserve in a port's window.
  /// - Parameter hotplugRoom: the default for a port with hotplug.
  private static func reserved(
    _ window: BridgeWindow, of port: RootPort, hotplugRoom: [BridgeWindow: UInt64]
  ) -> UInt64 {
    let standard = port.hotplug == nil ? 0 : hotplugRoom[window] ?? 0
    return switch window {
    case .io: port.reservation.io ?? 0
    case .memory: port.reservation.memory ?? standard
    case .prefetchable: port.reservation.prefetchable ?? standard
    }
  }

  /// Numbers the buses: each port's link gets the next number; its reserved numbers follow.
  private func number(_ ports: [RootPort]) throws(NoRoom) {
    var last: UInt8 = 0
    for port in ports {
      let reserved = port.reservation.buses ?? 0
      let (subordinate, overflow) = last.addingReportingOverflow(1 &+ reserved)
      guard !overflow, reserved < .max else {
        throw NoRoom(address: port.function.requester.id, bar: nil, size: UInt64(reserved) + 1)
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

  private mutating func take(_ request: RangeRequest) -> UInt64? {
    let (size, alignment) = (request.size, request.alignment)
    if request.window == .io { return io.take(size, alignment: alignment) }
    if request.prefersHigh, let base = memory64.take(size, alignment: alignment) { return base }
    if let base = memory32.take(size, alignment: alignment) { return base }
    return request.isWide ? memory64.take(size, alignment: alignment) : nil
  }
}
