import Hardware
import TestSupport
import VTd
import VTdOracle

extension UnitOptions {
  /// Creates any consistent options from two bytes.
  init(_ input: inout FuzzInput) {
    self.init()
    let flags = input.word()
    scalableMode = flags[bit: 0]
    firstStage = scalableMode && flags[bit: 1]
    nested = firstStage && flags[bit: 2]
    addressWidth = flags[bit: 3] ? 57 : flags[bit: 4] && !firstStage ? 39 : 48
    interruptRemapping = !flags[bit: 5]
    extendedInterruptMode = flags[bit: 6] ? false : nil
    cachingMode = flags[bit: 7]
    snoopControl = flags[bit: 8]
    deviceIOTLB = flags[bit: 9]
    ignoresTransientMapping = deviceIOTLB && flags[bit: 10]
    pasidBits = scalableMode && flags[bit: 11] ? (flags[bit: 12] ? 20 : 8) : 0
    fs1gp = !flags[bit: 13]
    passThrough = !flags[bit: 14]
    dmaTranslation = firstStage || !flags[bit: 15]
    svm = firstStage && deviceIOTLB && pasidBits > 0
  }
}

/// A unit with options chosen by the input, a little RAM and several functions.
final class UnitUnderTest {
  let memory = HeapMemory(size: FuzzMemory.size)
  let unit: RemappingUnit
  let messages = RecordingSink()
  let timer = FuzzTimer()
  let requesters: [Requester]
  private(set) var ports: [any DMAPort]

  /// Mostly registers whose writes have an effect, with the upper halves of 64-bit registers.
  static let offsets: [UInt64] = [
    0x18, 0x20, 0x24, 0x28, 0x2c, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x64, 0x80, 0x88, 0x90, 0x94, 0x9c, 0xa0, 0xa4, 0xa8,
    0xac, 0xb0, 0xb8, 0xbc, 0xc0, 0xc8, 0xd0, 0xdc, 0xe0, 0xe4, 0xe8, 0xec, 0xf0, 0xf4, 0xf8, 0xfc, 0x220, 0x228, 0x22c,
    0x00, 0x08, 0x10, 0x1c,
  ]

  init(_ input: inout FuzzInput) throws(Finding) {
    let router = RecordingRouter()
    do {
      unit = try RemappingUnit(
        options: UnitOptions(&input), memory: memory, faultEvent: router.makeRoute(for: Requester(id: .unitFault)),
        invalidationEvent: router.makeRoute(for: Requester(id: .unitFault)),
        pageRequestEvent: router.makeRoute(for: Requester(id: .unitFault)), messages: messages, parking: FuzzParking(),
        deviceTimer: timer)
    } catch {
      throw Finding(text: "valid options are refused: \(error)")
    }
    unit.addObserver(RecordingObserver())
    let unit = unit
    requesters = [0x18, 0x19, 0xc0, 0x100].map {
      Requester(id: RequesterID(rawValue: $0), busMasterEnable: true)
    }
    ports = requesters.map { unit.makePort(for: $0) }
    ports.append(unit.makePort(for: requesters[0], pasid: 1))
    ports.append(unit.makePort(for: requesters[2], pasid: 65))
  }

  /// Writes one of the registers in `offsets`, or sometimes any bytes.
  func writeRegister(_ input: inout FuzzInput) throws(Finding) {
    let place = input.byte()
    let offset: UInt64
    let width: AccessWidth
    if place < 0xc0 {
      offset = Self.offsets[Int(place) % Self.offsets.count]
      width = offset % 8 == 0 && place & 0x40 != 0 ? .quadword : .doubleword
    } else {
      offset = UInt64(input.word() % 0x1010)
      width = input.width()
    }
    // A command either changes one bit of the current status, as drivers do, or is arbitrary.
    if offset == 0x18, place & 0x40 == 0 {
      let status = unit.read(offset: 0x1c, width: .doubleword)
      write(0x18, .doubleword, status & 0x8680_0000 ^ 1 << UInt64(23 + input.choice(9)))
    } else {
      write(offset, width, input.value() & width.allOnes)
    }
    try checkRegisters()
  }

  func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
    unit.write(offset: offset, width: width, value: value)
  }

  /// Writes a few bytes of RAM, or several entries.
  func writeMemory(_ input: inout FuzzInput) {
    let address = input.address() &+ UInt64(input.byte()) * 16
    let value = input.value()
    switch input.choice(4) {
    case 0:
      // Entries that point to successive pages.
      for index: UInt64 in 0..<64 { memory.storeUInt64(value &+ index << 12, at: address &+ index * 8) }
    case 1:
      memory.storeUInt64(value, at: address)
      memory.storeUInt64(input.value(), at: address &+ 8)
    default: memory.storeUInt64(value, at: address)
    }
  }

  func access(_ input: inout FuzzInput) throws(Finding) {
    let port = ports[input.choice(ports.count)]
    let form = input.byte()
    let address = form & 1 == 0 ? input.address() | UInt64(input.byte()) << 4 : input.value()
    switch form >> 1 & 3 {
    case 0, 1:
      let count = form & 0x80 == 0 ? Int(form >> 3) + 1 : Int.max
      let access: DMAAccess = form & 2 == 0 ? .read : .write
      guard case .at(_, let length) = port.answer(address, count: count, access) else { return }
      try Finding.unless(length > 0 && length <= count, "\(count) bytes wanted at \(address), \(length) given")
    case 2: _ = try? port.storeUInt32(UInt32(truncatingIfNeeded: input.little(4)), at: address)
    default:
      var segments: [PhysicalSegment] = []
      let request = port.request()
      _ = try? port.resolve(address, count: Int(form) << 6, for: .read, into: &segments, during: request)
      request.end()
      let sum = segments.reduce(0) { $0 + $1.count }
      try Finding.unless(sum <= Int(form) << 6, "segments of \(sum) bytes for \(Int(form) << 6)")
    }
  }

  func interrupt(_ input: inout FuzzInput) {
    let message = InterruptMessage(
      address: 0xfee0_0000 ^ input.value(), data: UInt32(truncatingIfNeeded: input.value()))
    let flags = input.byte()
    _ = unit.remap(message, from: requesters[Int(flags & 3)].id, recordFault: flags & 4 != 0)
  }

  func changeFunction(_ input: inout FuzzInput) {
    let requester = input.pick(requesters)
    switch input.choice(4) {
    case 0: requester.busMasterEnable.toggle()
    case 1: requester.id = RequesterID(rawValue: input.word())
    case 2: ports[input.choice(ports.count)] = unit.makePort(for: requester)
    default: ports[input.choice(ports.count)] = unit.makePort(for: requester, pasid: UInt32(input.word()))
    }
  }

  /// Checks the invariants that hold whatever software did.
  func checkRegisters() throws(Finding) {
    let status = unit.read(offset: 0x1c, width: .doubleword)
    let head = unit.read(offset: 0x80, width: .quadword)
    try Finding.unless(unit.read(offset: 0x18, width: .doubleword) == 0, "GCMD does not read as zero")
    try Finding.unless(head & 0xf == 0 && head < 0x8_0000, "IQH is \(head)")
    try Finding.unless(
      unit.read(offset: 0x08, width: .quadword) == unit.capabilities.capability
        && unit.read(offset: 0x10, width: .quadword) == unit.capabilities.extended, "CAP or ECAP changed")
    // A running queue has been read up to its tail, or reports an error.
    guard status & 1 << 26 != 0 else { return }
    // No function here has a translation cache that could keep a wait descriptor parked.
    let faults = unit.read(offset: 0x34, width: .doubleword)
    let tail = unit.read(offset: 0x88, width: .quadword)
    try Finding.unless(faults & 0x50 != 0 || head == tail, "IQH is \(head), IQT \(tail), FSTS \(faults)")
  }

  /// Checks that a reset restores the initial state.
  func checkReset() throws(Finding) {
    unit.reset()
    for offset in stride(from: UInt64(0x18), to: 0x1000, by: 8) {
      let value = unit.read(offset: offset, width: .quadword)
      let expected: UInt64 = offset == 0x38 || offset == 0xa0 || offset == 0xe0 && unit.options.svm ? 0x8000_0000 : 0
      try Finding.unless(value == expected, "after reset \(value) is at \(offset)")
    }
    for requester in requesters { requester.busMasterEnable = true }
    for port in ports {
      try Finding.unless(port.answer(0x123) == .at(0x123, 8), "after reset a request does not pass unchanged")
    }
  }
}

extension RequesterID {
  fileprivate static let unitFault = RequesterID(rawValue: 0xfff0)
}
