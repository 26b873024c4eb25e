import Hardware

// The input selects one device and accesses it in every way that a driver or an attacker can: configuration space,
// BARs, MSI-X tables, virtio's structures and rings. The device is behind a remapping unit.

extension FuzzTarget {
  static let configuration = FuzzTarget("configuration") { input throws(Finding) in
    let board = try BoardUnderTest(&input)
    let driver = FuzzDriver(board: board)
    var doorbells = 0
    while !input.isEmpty, doorbells < 200 {
      doorbells += 1
      switch input.choice(16) {
      case 0, 1: driver.configurationWrite(&input)
      case 2, 3, 4: driver.regionWrite(&input)
      case 5:
        let offset = input.choice(4) == 0 ? UInt64(input.word()) : UInt64(input.byte())
        try board.read(input.pick(board.bases) + offset, input.width())
      case 6:
        try board.read(
          0xb000_0000 + UInt64(input.choice(2)) << 12 + 0x1_8000 + UInt64(input.word() & 0xfff), input.width())
      case 7: driver.virtioField(&input)
      case 8: driver.virtioStart(&input)
      case 9, 10: driver.offerChain(&input)
      case 11:
        // Let the device do its pending work.
        board.workers.run()
        if input.choice(4) == 0 { board.timer.runOut() }
      case 12: driver.notify(&input)
      case 13:
        let address = input.address() &+ UInt64(input.byte()) * 8
        board.memory.store((0..<8).map { _ in input.byte() }, at: address)
      case 14: driver.device(&input)
      default:
        switch input.choice(10) {
        case 0: board.function.reset()
        case 8: driver.enableServices(&input)
        case 9: driver.engine(&input)
        case 1: board.write(0xfed9_0000 + UInt64(input.word() & 0xfff), input.width(), input.value())
        case 2: board.ioBus.write(address: 0xcf8 + UInt64(input.choice(8)), width: input.width(), value: input.value())
        default: board.function.writeConfiguration(offset: 4, width: .word, value: 7)
        }
      }
    }
    try board.unplug()
  }
}

/// The steps of a driver. The input can make a part of each step wrong.
private struct FuzzDriver {
  let board: BoardUnderTest

  /// Returns the address of a queue's rings: descriptor table, available ring and used ring, one page each.
  private static func rings(_ queue: UInt64) -> UInt64 { 0x1_0000 + queue * 0x3000 }

  /// The address of virtio's structures: the last BAR.
  private var structures: UInt64 { board.bases.last ?? 0 }

  func configurationWrite(_ input: inout FuzzInput) {
    let offset = input.choice(4) == 0 ? Int(input.word() & 0xfff) : Int(input.byte())
    let value = input.value()
    let width = input.width()
    board.write(0xb001_8000 + UInt64(offset), width, value)
  }

  func regionWrite(_ input: inout FuzzInput) {
    let base = input.pick(board.bases)
    let offset = input.choice(4) == 0 ? input.little(3) : UInt64(input.byte())
    board.write(base + offset, input.width(), input.value())
  }

  private func common(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
    board.write(structures + offset, width, value)
  }

  /// Writes one field of the common configuration.
  func virtioField(_ input: inout FuzzInput) {
    let fields: [(UInt64, AccessWidth)] = [
      (0x00, .doubleword), (0x08, .doubleword), (0x0c, .doubleword), (0x10, .word), (0x14, .byte), (0x16, .word),
      (0x18, .word), (0x1a, .word), (0x1c, .word), (0x20, .quadword), (0x28, .quadword), (0x30, .quadword),
      (0x3a, .word),
    ]
    let (offset, width) = input.pick(fields)
    common(offset, width, input.value())
  }

  /// Initializes the device as a driver does.
  func virtioStart(_ input: inout FuzzInput) {
    common(0x14, .byte, 0)
    common(0x14, .byte, 3)
    for half: UInt64 in 0..<2 {
      common(0x00, .doubleword, half)
      let offered = board.memoryBus.read(address: structures + 4, width: .doubleword) ?? 0
      common(0x08, .doubleword, half)
      common(0x0c, .doubleword, offered & ~(half == 0 && input.choice(2) == 0 ? 1 << 29 : 0))
    }
    common(0x14, .byte, 0xb)
    for queue: UInt64 in 0..<4 {
      common(0x16, .word, queue)
      common(0x18, .word, 8)
      for (index, offset) in [0x20, 0x28, 0x30].enumerated() {
        common(UInt64(offset), .quadword, Self.rings(queue) + UInt64(index) * 0x1000)
      }
      common(0x1a, .word, queue)
      common(0x1c, .word, 1)
    }
    common(0x14, .byte, 0xf)
  }

  /// Makes a chain of descriptors available in a queue of 8 entries.
  func offerChain(_ input: inout FuzzInput) {
    let queue = UInt64(input.choice(4))
    let table = Self.rings(queue)
    let available = table + 0x1000
    let memory = board.memory
    let first = UInt64(input.choice(8))
    let count = UInt64(1 + input.choice(5))
    for index in 0..<count {
      let at = table + ((first + index) % 8) * 16
      let form = input.byte()
      let isLast = index + 1 == count
      let length: UInt64 =
        switch form >> 5 {
        case 0: 16
        case 1: 512
        case 2: 1
        case 3: UInt64(input.byte())
        case 4: UInt64(input.word())
        case 5: input.little(4)
        default: 4096
        }
      var flags: UInt64 = (isLast ? 0 : 1) | UInt64(form & 2)
      if form & 0x1c == 0x1c { flags ^= 4 }
      if form & 0x1d == 0x15 { flags ^= 1 }
      memory.storeUInt64(input.address() | UInt64(form & 1) << 4, at: at)
      memory.storeUInt64(length | flags << 32 | ((first + index + 1) % 8) << 48, at: at + 8)
    }
    if input.choice(2) == 0 {
      // A header of virtio-blk in the first buffer: type, sector.
      let header = memory.loadUInt64(at: table + first * 16) ?? 0
      memory.storeUInt64(UInt64(input.byte() & 0xf), at: header)
      memory.storeUInt64(input.value(), at: header &+ 8)
    }
    let index = memory.loadUInt16(at: available + 2) ?? 0
    memory.storeUInt16(UInt16(first), at: available + 4 + UInt64(index % 8) * 2)
    memory.storeUInt16(index &+ 1, at: available + 2)
    if input.choice(2) == 0 { notify(queue) }
  }

  func notify(_ input: inout FuzzInput) {
    notify(UInt64(input.choice(5)))
    if input.choice(2) == 0 { board.workers.run() }
  }

  private func notify(_ queue: UInt64) { board.write(structures + 0x3000 + queue * 4, .word, queue) }

  /// Enables ATS, PRI and PASID if the function has them; sometimes writes other values.
  func enableServices(_ input: inout FuzzInput) {
    for (id, offset, on) in [(0x0f, 6, 0x8000), (0x13, 4, 1), (0x1b, 6, 7)] as [(UInt16, Int, UInt64)] {
      guard let at = board.function.extendedCapability(id) else { continue }
      let value = input.choice(4) == 0 ? input.value() : on
      board.function.writeConfiguration(offset: at + offset, width: .word, value: value & 0xffff)
    }
    // The page request queue has its own page.
    board.write(0xfed9_00d0, .quadword, 0x3000)
  }

  /// Starts a command of dma-engine.
  func engine(_ input: inout FuzzInput) {
    let base = board.bases.first ?? 0
    board.write(base + 0x14, .doubleword, UInt64(input.byte() & 3))
    board.write(base + 0x18, .quadword, input.address())
    board.write(base + 0x20, .quadword, input.address())
    board.write(base + 0x28, .quadword, input.choice(4) == 0 ? input.value() : UInt64(input.word()))
    board.write(base + 0x30, .doubleword, UInt64(input.byte()))
    board.write(base + 0x08, .doubleword, UInt64(input.byte()) << 6 & 0x300 | UInt64(input.byte() & 3))
    board.write(base + 0x10, .doubleword, UInt64(input.word()) | UInt64(input.byte()) << 16)
    // A job in a slot: also with page requests and a completion record.
    let slot = base + 0x400 + 0x40 * UInt64(input.byte() & 15)
    board.write(slot + 0x08, .quadword, input.address())
    board.write(slot + 0x10, .quadword, input.address())
    board.write(slot + 0x18, .quadword, UInt64(input.word()))
    board.write(slot + 0x20, .doubleword, UInt64(input.byte() & 3))
    board.write(slot + 0x28, .quadword, input.address() & ~31)
    board.write(slot, .doubleword, UInt64(input.word()) & 0x8df0 | 3)
    if input.choice(4) == 0 { board.write(slot + 0x04, .doubleword, 2) }
  }

  /// Operates edu or iommu-testdev through their registers.
  func device(_ input: inout FuzzInput) {
    let base = board.bases.first ?? 0
    switch input.choice(4) {
    case 0:
      board.write(base + 0x80, .quadword, input.choice(2) == 0 ? 0x40000 : input.address())
      board.write(base + 0x88, .quadword, input.choice(2) == 0 ? 0x40000 : input.address())
      board.write(base + 0x90, .quadword, input.choice(4) == 0 ? input.value() : UInt64(input.word() & 0x1fff))
      board.write(base + 0x98, .quadword, UInt64(input.byte() & 7))
    case 1: board.write(base + 0x08, .doubleword, input.value())
    case 2:
      for offset: UInt64 in stride(from: 0, to: 0x20, by: 4) where input.choice(4) != 0 {
        board.write(base + offset, .doubleword, input.choice(2) == 0 ? input.address() : input.value())
      }
      _ = board.memoryBus.read(address: base, width: .doubleword)
    default: board.write(base + UInt64(input.byte()), .doubleword, input.value())
    }
  }
}
