import Hardware

/// What firmware does for PCI before an operating system starts: gives each BAR an address in the board's
/// windows and enables decoding. Nestling has no firmware, so the board runs this at start and after a reset.
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

  /// A BAR for which no window has room.
  public struct NoRoom: Error, Hashable, Sendable {
    public let address: RequesterID
    public let bar: Int
    public let size: UInt64
  }

  private var free: Windows

  public init(windows: Windows) { free = windows }

  /// Places everything, larger BARs first so that alignment wastes little. 64-bit BARs go below 4 GiB while
  /// there is room, where a bare kernel can reach them, and above otherwise.
  public mutating func place(_ functions: [Function]) throws(NoRoom) {
    var wanted = functions.flatMap { function in function.description.baseAddressRegisters.map { (function, $0) } }
    wanted.sort { a, b in
      (b.1.size, a.0.requester.id, a.1.index) < (a.1.size, b.0.requester.id, b.1.index)
    }
    for (function, bar) in wanted {
      guard let base = take(bar) else {
        throw NoRoom(address: function.requester.id, bar: bar.index, size: bar.size)
      }
      function.place(bar, at: base)
    }
    for function in functions where !function.description.baseAddressRegisters.isEmpty {
      let spaces = function.description.baseAddressRegisters.map {
        $0.space == .io ? Command.ioSpaceEnable : .memorySpaceEnable
      }
      let command = spaces.reduce(Command()) { $0.union($1) }
      function.writeConfiguration(offset: StandardOffset.command, width: .word, value: UInt64(command.rawValue))
    }
  }

  private mutating func take(_ bar: BaseAddressRegister) -> UInt64? {
    switch bar.space {
    case .io: Self.take(bar.size, from: &free.io)
    case .memory32, .expansionROM: Self.take(max(bar.size, 4096), from: &free.memory32)
    case .memory64:
      Self.take(max(bar.size, 4096), from: &free.memory32) ?? Self.take(max(bar.size, 4096), from: &free.memory64)
    }
  }

  private static func take(_ size: UInt64, from range: inout Range<UInt64>) -> UInt64? {
    let (rounded, overflow) = range.lowerBound.addingReportingOverflow(size - 1)
    guard !overflow else { return nil }
    let base = rounded & ~(size - 1)
    guard base < range.upperBound, size <= range.upperBound - base else { return nil }
    range = base + size..<range.upperBound
    return base
  }
}
