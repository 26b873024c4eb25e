import Hardware

// The invalidation queue: nearly valid descriptors of 128 and 256 bits, at any address and for any tail. Wait
// descriptors write their status anywhere: into the queue, into tables, beyond RAM.

extension FuzzTarget {
  static let queue = FuzzTarget("queue") { input throws(Finding) in
    let subject = try UnitUnderTest(&input)
    var queue = FuzzQueue(&input)
    queue.enable(on: subject)
    var doorbells = 0
    while !input.isEmpty, doorbells < 64 {
      switch input.choice(16) {
      case 0..<6: queue.put(&input, into: subject)
      case 6..<9:
        doorbells += 1
        subject.write(0x88, .quadword, queue.tail)
      case 9:
        doorbells += 1
        subject.write(0x88, input.width(), input.value())
      case 10:
        // Write FSTS: clear the errors as a driver does, or write any value.
        doorbells += 1
        subject.write(0x34, .doubleword, input.choice(2) == 0 ? 0x71 : input.value())
      case 11:
        doorbells += 1
        queue = FuzzQueue(&input)
        queue.enable(on: subject)
      case 12: try subject.access(&input)
      case 13: subject.writeMemory(&input)
      case 14:
        doorbells += 1
        try subject.writeRegister(&input)
      default: queue.fill(&input, in: subject)
      }
      try subject.checkRegisters()
    }
    try subject.checkReset()
  }
}

/// The queue as software sees it.
private struct FuzzQueue {
  let base: UInt64
  let isWide: Bool
  let order: UInt64
  let scalable: Bool
  private(set) var tail: UInt64 = 0

  init(_ input: inout FuzzInput) {
    let form = UInt64(input.byte())
    isWide = form[bit: 0]
    order = form[bits: 1...3]
    scalable = form[bit: 4]
    base = input.address() & ~0xfff
  }

  private var size: UInt64 { 0x1000 << order }
  private var step: UInt64 { isWide ? 32 : 16 }

  /// Disables the queue, sets the mode of the tables, and enables the queue again.
  func enable(on subject: UnitUnderTest) {
    let others = subject.unit.read(offset: 0x1c, width: .doubleword) & 0x8280_0000
    subject.write(0x18, .doubleword, others)
    subject.write(0x20, .quadword, 0x1000 | (scalable ? 0x400 : 0))
    subject.write(0x18, .doubleword, others | 1 << 30)
    subject.write(0x88, .quadword, 0)
    subject.write(0x90, .quadword, base | (isWide ? 0x800 : 0) | order)
    subject.write(0x18, .doubleword, others | 1 << 26)
  }

  /// Puts one descriptor at the tail and advances `tail`. The register does not change.
  mutating func put(_ input: inout FuzzInput, into subject: UnitUnderTest) {
    let words = Self.descriptor(&input)
    for (index, word) in words.enumerated() where UInt64(index) * 8 < step {
      subject.memory.storeUInt64(word, at: base &+ tail &+ UInt64(index) * 8)
    }
    tail = (tail + step) % size
  }

  /// Fills the queue with one descriptor, up to two pages: more would only be slower.
  mutating func fill(_ input: inout FuzzInput, in subject: UnitUnderTest) {
    let words = Self.descriptor(&input)
    for place in stride(from: UInt64(0), to: min(size, 0x2000), by: Int(step)) {
      for (index, word) in words.enumerated() where UInt64(index) * 8 < step {
        subject.memory.storeUInt64(word, at: base &+ place &+ UInt64(index) * 8)
      }
    }
    tail = (tail &- step) % size
  }

  private static func descriptor(_ input: inout FuzzInput) -> [UInt64] {
    let form = input.byte()
    if form >= 0xf0 { return [input.value(), input.value(), input.value(), input.value()] }
    let type = UInt64(form & 0xf)
    var low = type | UInt64(input.byte() & 0xf) << 4
    var high: UInt64 = 0
    switch type {
    case 1: low |= UInt64(input.word()) << 16 | UInt64(input.word()) << 32 | UInt64(form >> 6) << 48
    case 2:
      low |= UInt64(input.byte()) << 16
      high = input.address() | UInt64(input.byte() & 0x7f)
    case 3:
      low |= UInt64(input.word()) << 32 | UInt64(form >> 5) << 16
      high = input.address() | UInt64(form >> 7)
    case 4: low |= UInt64(input.byte() & 0x1f) << 27 | UInt64(input.word()) << 32
    case 5:
      low |= input.little(4) << 32
      high = input.address() | UInt64(input.byte()) << 2
    case 6, 7, 8:
      low |= UInt64(input.byte()) << 16 | UInt64(input.byte()) << 32
      if type != 7 { high = input.address() | UInt64(input.byte() & 0x7f) | UInt64(form >> 7) << 11 }
    default:
      low |= input.value()
      high = input.value()
    }
    // Sometimes flip a bit that may be reserved.
    let odd = input.byte()
    if odd < 64 { low ^= 1 << UInt64(odd) }
    return [low, high, odd == 0xff ? input.value() : 0, 0]
  }
}
