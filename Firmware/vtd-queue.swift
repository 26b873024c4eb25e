/// Tests the invalidation queue: both widths of descriptors, the wrap at the queue's end, waits with status and
/// interrupt, and each error of the queue with the recovery from it. VT-d 4.1, 6.5.2 and 11.4.9.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-queue" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on,x-nested=on

private typealias Register = RemappingUnit.Register

/// IQEI of the error record: VT-d 11.4.9.9.
private enum Problem {
  static let tail: UInt64 = 1
  static let fetch: UInt64 = 2
  static let type: UInt64 = 3
  static let reserved: UInt64 = 4
  static let width: UInt64 = 5
  static let misaligned: UInt64 = 6
  static let tableMode: UInt64 = 7
}

private let completion: UInt32 = 0x53
private let queueError: UInt32 = 1 << 4
/// An invalidation of all contexts, which is valid in every mode.
private let good: UInt64 = 0x1 | 1 << 4
/// An address without memory in every machine of these tests, within every address width.
private let nowhere: UInt64 = 1 << 38
/// Ticks after which an interrupt that must not come would have come.
private let silence: UInt64 = 20_000_000

private func status() -> UInt32 { RemappingUnit.read32(Register.faultStatus) }
private func head() -> UInt64 { RemappingUnit.read64(Register.queueHead) }
private func soon(_ condition: () -> Bool) -> Bool { wait(ticks: RemappingUnit.patience, until: condition) }

/// Queues a wait that writes a number to a place.
private func enqueueWait(_ number: UInt64, at place: UInt64, interrupts: Bool = false) {
  RemappingUnit.enqueue(0x5 | 1 << 5 | (interrupts ? 1 << 4 : 0) | number << 32, place)
}

private func checkOrder(isWide: Bool) {
  RemappingUnit.startQueue(isWide: isWide)
  let size: UInt64 = isWide ? 32 : 16
  let capacity = Pages.size / size
  let place = Pages.take()
  Report.check("a new queue starts at its beginning", head() == 0)

  // Three laps, in pieces that wrap at different places.
  var number: UInt64 = 0
  var inOrder = true
  while number < 3 * capacity {
    let first = number
    while number < first + 41 {
      number += 1
      // Each wait writes one of 50 places. The wait after the loop writes the last place.
      enqueueWait(number, at: place + 8 * (number % 50))
      if number % 5 == 0 { RemappingUnit.enqueue(good) }
    }
    enqueueWait(number, at: place + 0x800)
    RemappingUnit.ring()
    if !soon({ load32(place + 0x800) == UInt32(number) }) { inOrder = false }
    for written in first + 1...number where load32(place + 8 * (written % 50)) != UInt32(written) { inOrder = false }
  }
  Report.check("three laps complete, each piece before its wait", inOrder)
  Report.check("the head reaches the tail", head() == RemappingUnit.read64(Register.queueTail))

  // Fill the queue: it holds one descriptor less than it has entries.
  for _ in 0..<capacity - 2 { RemappingUnit.enqueue(good) }
  Report.check("a full queue completes", RemappingUnit.submitAndWait())
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  enqueueWait(1, at: place + 0x808)
  RemappingUnit.ring()
  Report.check("a disabled queue does nothing", load32(place + 0x808) == 0 && status() == 0)
}

/// Checks a queue of 8 KiB instead of 4 KiB.
private func checkSize() {
  let memory = Pages.take(2 * Pages.size)
  let place = Pages.take()
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write64(Register.queueTail, 0)
  RemappingUnit.write64(Register.queueAddress, memory | 1)
  RemappingUnit.command(RemappingUnit.Command.queueEnable)
  for index in 0..<UInt64(511) {
    store64(memory + index * 16, 0x5 | 1 << 5 | (index + 1) << 32)
    store64(memory + index * 16 + 8, place + index * 4)
  }
  RemappingUnit.write64(Register.queueTail, 511 * 16)
  var whole = soon { head() == 511 * 16 }
  for index in 0..<UInt64(511) where load32(place + index * 4) != UInt32(index + 1) { whole = false }
  Report.check("a queue of two pages completes", whole)
}

// MARK: Errors

/// Checks that the queue stops at an invalid first descriptor, and continues after that is replaced by a valid one and
/// the error is cleared.
private func checkError(
  _ name: StaticString, _ problem: UInt64, _ low: UInt64, _ high: UInt64 = 0, upper: UInt64 = 0, isWide: Bool
) {
  RemappingUnit.startQueue(isWide: isWide)
  let queue = RemappingUnit.queue
  let place = Pages.take()
  RemappingUnit.enqueue(low, high)
  if isWide { store64(queue + 24, upper) }
  enqueueWait(0x1234, at: place)
  RemappingUnit.ring()
  let stops = status() == queueError && RemappingUnit.read64(Register.queueErrorRecord) & 0xf == problem && head() == 0
  RemappingUnit.ring()
  let stays = load32(place) == 0 && head() == 0
  store64(queue, good)
  store64(queue + 8, 0)
  if isWide { store64(queue + 24, 0) }
  RemappingUnit.write32(Register.faultStatus, queueError)
  let goesOn = soon { load32(place) == 0x1234 } && status() == 0 && head() == (isWide ? 64 : 32)
  if stops, stays, goesOn { return Report.pass(name) }
  put("FAIL ")
  put(name)
  put(
    stops
      ? stays ? ": the queue does not continue, error " : ": the queue does not stay stopped, error "
      : ": the queue does not stop, error ")
  put(RemappingUnit.read64(Register.queueErrorRecord) & 0xf)
  endLine()
  Report.countFailure()
}

private func checkDescriptors(isWide: Bool, isScalable: Bool) {
  func check(_ name: StaticString, _ problem: UInt64, _ low: UInt64, _ high: UInt64 = 0, upper: UInt64 = 0) {
    checkError(name, problem, low, high, upper: upper, isWide: isWide)
  }
  check("an undefined type is an error", Problem.type, 0xf)
  check("type 0 is an error", Problem.type, 0)
  check("a context invalidation whose upper type bits are not zero is an error", Problem.type, 0x1 | 1 << 9)
  check("reserved bits of a context invalidation are an error", Problem.reserved, good | 1 << 50)
  check("reserved bits in the upper half of a context invalidation are an error", Problem.reserved, good, 1)
  check("granularity 0 of a context invalidation is an error", Problem.reserved, 0x1)
  check("granularity 0 of an IOTLB invalidation is an error", Problem.reserved, 0x2)
  check("an address mask larger than the offered maximum is an error", Problem.reserved, 0x2 | 3 << 4, 19)
  check("reserved bits of a wait are an error", Problem.reserved, 0x5 | 1 << 5 | 1 << 8, 0x1000)
  if isWide {
    check("reserved bits in the second half of a wide descriptor are an error", Problem.reserved, good, upper: 1 << 63)
  }
  if !RemappingUnit.offers(RemappingUnit.deviceTLB) {
    check("a device-TLB invalidation that is not offered is an error", Problem.type, 0x3)
  }
  if !RemappingUnit.offers(RemappingUnit.scalableMode) {
    check("a PASID-cache invalidation that is not offered is an error", Problem.type, 0x7 | 3 << 4)
  } else if isScalable {
    check("granularity 2 of a PASID-cache invalidation is an error", Problem.reserved, 0x7 | 2 << 4)
    check("granularity 0 of a PASID-based IOTLB invalidation is an error", Problem.reserved, 0x6)
  } else {
    check("a PASID-cache invalidation in legacy mode is an error", Problem.type, 0x7 | 3 << 4)
    check("a PASID-based IOTLB invalidation in legacy mode is an error", Problem.type, 0x6 | 2 << 4)
  }
}

/// Checks errors of the tail and of the queue's address.
private func checkPlace(isWide: Bool) {
  let place = Pages.take()
  func checkTail(_ name: StaticString, _ tail: UInt64, _ problem: UInt64) {
    RemappingUnit.startQueue(isWide: isWide)
    enqueueWait(tail, at: place)
    RemappingUnit.write64(Register.queueTail, tail)
    let stops = status() == queueError && RemappingUnit.read64(Register.queueErrorRecord) & 0xf == problem
    // Writes a valid tail and clears the error.
    RemappingUnit.ring()
    RemappingUnit.write32(Register.faultStatus, queueError)
    Report.check(name, stops && soon { load32(place) == UInt32(tail) } && status() == 0)
  }
  checkTail("a tail beyond the queue is an error", 0x1000, Problem.tail)
  checkTail("a tail far beyond the queue is an error", 0x7_ffe0, Problem.tail)
  if isWide { checkTail("a tail within a descriptor is an error", 0x30, Problem.misaligned) }

  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write64(Register.queueTail, 0)
  RemappingUnit.write64(Register.queueAddress, nowhere | (isWide ? 1 << 11 : 0))
  RemappingUnit.command(RemappingUnit.Command.queueEnable)
  RemappingUnit.write64(Register.queueTail, 64)
  Report.check(
    "a queue without memory is an error",
    status() == queueError && RemappingUnit.read64(Register.queueErrorRecord) & 0xf == Problem.fetch)
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write32(Register.faultStatus, queueError)
  RemappingUnit.startQueue(isWide: isWide)
  Report.check("a queue at another address works again", RemappingUnit.submit(good))
}

// MARK: The completion event

private func checkCompletion(isWide: Bool) {
  put("the completion event\n")
  RemappingUnit.startQueue(isWide: isWide)
  let mask = RemappingUnit.eventMask
  let pending = RemappingUnit.eventPending
  let place = Pages.take()
  func control() -> UInt32 { RemappingUnit.read32(Register.completionEventControl) }
  func submit(_ number: UInt64) {
    enqueueWait(number, at: place, interrupts: true)
    RemappingUnit.ring()
  }
  func arrives(_ action: () -> Void) -> Bool {
    let before = Interrupts.count(completion)
    action()
    return soon { Interrupts.count(completion) != before } && Interrupts.count(completion) == before + 1
  }
  func staysSilent(_ action: () -> Void) -> Bool {
    let before = Interrupts.count(completion)
    action()
    return !wait(ticks: silence) { Interrupts.count(completion) != before }
  }
  func serve() { RemappingUnit.write32(Register.completionStatus, 1) }
  RemappingUnit.write32(Register.completionEventControl, mask)
  RemappingUnit.setEvent(Register.completionEventControl, vector: completion, to: LocalAPIC.identifier)
  enableInterrupts()

  Report.check("a masked completion event does not come", staysSilent { submit(1) })
  Report.check("a masked completion event does not prevent the status", load32(place) == 1)
  Report.check(
    "IWC is set and the completion event is pending",
    RemappingUnit.read32(Register.completionStatus) == 1 && control() == mask | pending)
  Report.check(
    "unmasking brings the completion event", arrives { RemappingUnit.write32(Register.completionEventControl, 0) })
  Report.check("before IWC is cleared, another completion brings no event", staysSilent { submit(2) })
  serve()
  Report.check("writing a one clears IWC", RemappingUnit.read32(Register.completionStatus) == 0)
  Report.check("the next completion brings the event", arrives { submit(3) })
  serve()
  RemappingUnit.write32(Register.completionEventControl, mask)
  submit(4)
  serve()
  Report.check("clearing IWC clears a pending event", control() == mask)
  Report.check(
    "a cleared event does not come", staysSilent { RemappingUnit.write32(Register.completionEventControl, 0) })
  Report.check(
    "a wait without IF brings no event",
    staysSilent {
      enqueueWait(5, at: place)
      RemappingUnit.ring()
    })
  Report.check("a wait without IF writes its status", load32(place) == 5)
  RemappingUnit.write32(Register.completionEventControl, mask)
  disableInterrupts()
}

/// Checks that the unit fetches no descriptor of a queue.
private func checkNoFetch(_ name: StaticString, _ problem: UInt64, isWide: Bool) {
  RemappingUnit.startQueue(isWide: isWide)
  RemappingUnit.enqueue(good)
  RemappingUnit.ring()
  Report.check(name, status() == queueError && RemappingUnit.read64(Register.queueErrorRecord) & 0xf == problem)
  RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
  RemappingUnit.write32(Register.faultStatus, queueError)
}

private func setTableMode(_ mode: UInt64) {
  RemappingUnit.write64(Register.rootTableAddress, Pages.take() | mode << 10)
  RemappingUnit.command(RemappingUnit.Command.setRootTable)
}

func kernelMain() {
  guard RemappingUnit.isThere else { return Report.fail("there is no VT-d unit") }
  LocalAPIC.start()
  put("128-bit descriptors\n")
  checkOrder(isWide: false)
  checkSize()
  checkDescriptors(isWide: false, isScalable: false)
  checkPlace(isWide: false)
  checkCompletion(isWide: false)
  guard RemappingUnit.offers(RemappingUnit.scalableMode) else {
    return checkNoFetch("256-bit descriptors are an error without scalable mode", Problem.width, isWide: true)
  }

  put("256-bit descriptors\n")
  checkOrder(isWide: true)
  checkDescriptors(isWide: true, isScalable: false)
  checkPlace(isWide: true)

  put("256-bit descriptors in scalable mode\n")
  RemappingUnit.startQueue(isWide: true)
  setTableMode(1)
  checkDescriptors(isWide: true, isScalable: true)
  checkNoFetch("128-bit descriptors are an error in scalable mode", Problem.width, isWide: false)
  setTableMode(2)
  checkNoFetch("every descriptor is an error in a reserved table mode", Problem.tableMode, isWide: true)
}
