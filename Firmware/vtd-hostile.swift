/// Tests a guest that attacks the unit while another processor works. The attacks use queues that never end, that
/// overwrite themselves, that hold random descriptors, or that are not in memory; and random tails, registers and
/// tables. The machine must survive. The other processor must continue, and the DMA of its device, whose tables do not
/// change, must stay right. Each attack lasts until the other processor has done some work, so a slow machine does not
/// fail.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/vtd-hostile" \
///       -device intel-iommu,x-scalable-mode=on,x-flts=on \
///       -device edu,dma_mask=0xffffffffffffffff -device edu,dma_mask=0xffffffffffffffff

private typealias Register = RemappingUnit.Register

private let source: UInt64 = 0x12_3456_6000
private let sink: UInt64 = 0x12_3456_7000
private let nowhere: UInt64 = 1 << 38
private let domain: UInt64 = 0x2a
private let hostileDomain: UInt64 = 0x2b
private let good: UInt64 = 0x2 | 2 << 4 | hostileDomain << 16
/// The number of DMA copies that the other processor must complete during an attack.
private let turns: UInt64 = 8

// MARK: The working processor

private enum Worker {
  /// A page of shared words: turns done, wrong turns, whether to check DMA, whether to stop.
  nonisolated(unsafe) static var page: UInt64 = 0
  nonisolated(unsafe) static var memory: (source: UInt64, sink: UInt64) = (0, 0)
  nonisolated(unsafe) static var edu: Edu?

  static var done: UInt64 { load64(page) }
  static var wrong: UInt64 { load64(page + 8) }
  static var judgesDMA: Bool {
    get { load64(page + 16) != 0 }
    set { store64(page + 16, newValue ? 1 : 0) }
  }
  static func stop() { store64(page + 24, 1) }

  static func work() {
    guard let edu else { return }
    while load64(page + 24) == 0 {
      let number = done &+ 1
      let judged = judgesDMA
      store64(memory.source, number &* 0x9e37_79b9_7f4a_7c15)
      store64(memory.sink, 0)
      let moved = edu.copy(from: source, to: sink)
      if judged, judgesDMA, !moved || load64(memory.sink) != load64(memory.source) { store64(page + 8, wrong &+ 1) }
      store64(page, number)
    }
  }
}

// MARK: Attacks

private struct Random {
  nonisolated(unsafe) private static var state: UInt64 = 0

  /// - Parameter seed: any number except 0. The multiplication spreads a small seed over all bits; xorshift alone would
  ///   need many steps for that.
  static func restart(seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 }

  static func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}

private struct Attack {
  let edu: Edu
  let sources: SourceTables
  let isScalable: Bool
  /// The address of the hostile function's PASID entry; 0 in legacy mode.
  let entry: UInt64
  /// 512 KiB: the largest queue.
  let memory: UInt64

  /// Repeats an attack until the other processor has completed `turns` copies, then checks the results.
  /// - Parameter seed: a separate seed for this attack, so that its first rounds are the same in every run and every
  ///   mode. The number of rounds depends on time: with one random sequence for all attacks, each attack would begin at
  ///   a different place in each run.
  func run(_ name: StaticString, seed: UInt64, rounds: UInt64, judgesDMA: Bool = true, _ attack: (UInt64) -> Void) {
    Random.restart(seed: seed)
    Worker.judgesDMA = judgesDMA
    let begun = Worker.done
    let wrong = Worker.wrong
    let start = readTimestamp()
    var round: UInt64 = 0
    while round < rounds || Worker.done &- begun < turns {
      attack(round)
      round += 1
      if readTimestamp() &- start > 4 * RemappingUnit.patience { break }
    }
    let worked = Worker.done &- begun
    restore(judgesDMA)
    if worked >= turns, Worker.wrong == wrong, round >= rounds { return Report.pass(name) }
    put("FAIL ")
    put(name)
    put(": rounds ")
    put(round)
    put(", turns of the other processor ")
    put(worked)
    put(", of them wrong ")
    put(Worker.wrong &- wrong)
    endLine()
    Report.countFailure()
  }

  /// Restores the queue of a driver, and clears all faults.
  private func restore(_ isTranslating: Bool) {
    RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
    clearFaults()
    if isTranslating {
      RemappingUnit.startQueue(isWide: isScalable)
    } else {
      RemappingUnit.command(RemappingUnit.Command.interruptRemappingEnable, on: false)
      if !RemappingUnit.translate(root: sources.root, isScalable: isScalable) {
        Report.fail("translation does not come on after the attack")
      }
    }
    if !RemappingUnit.submit(good) { Report.fail("the queue does not work after the attack") }
    let before = Worker.done
    if !wait(ticks: 4 * RemappingUnit.patience, until: { Worker.done &- before >= 2 }) {
      Report.fail("the other processor stops after the attack")
    }
    Worker.judgesDMA = true
  }

  func clearFaults() {
    while RemappingUnit.takeFault() != nil {}
    RemappingUnit.write32(Register.faultStatus, 0x71)
  }

  /// Starts another queue, of 4 KiB shifted left by size (0 to 7).
  func startQueue(at address: UInt64, size: UInt64, isWide: Bool) {
    RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
    RemappingUnit.write64(Register.queueTail, 0)
    RemappingUnit.write64(Register.queueAddress, address | size | (isWide ? 1 << 11 : 0))
    RemappingUnit.command(RemappingUnit.Command.queueEnable)
  }

  func place(_ low: UInt64, _ high: UInt64, at offset: UInt64) {
    store64(memory + offset, low)
    store64(memory + offset + 8, high)
  }

  private var size: UInt64 { isScalable ? 32 : 16 }

  // MARK: Queues

  func endlessQueue() {
    Pages.fill(memory, 4096, with: 0)
    var at: UInt64 = 0
    while at < 4096 {
      place(good, 0, at: at)
      at += size
    }
    startQueue(at: memory, size: 0, isWide: isScalable)
    run("the machine survives a queue that is always full", seed: 1, rounds: 100) { _ in
      RemappingUnit.write64(Register.queueTail, (RemappingUnit.read64(Register.queueHead) &- size) & 0xfff)
    }
  }

  func largestQueue() {
    Pages.fill(memory, 512 << 10, with: 0)
    var at: UInt64 = 0
    while at < 512 << 10 {
      // Invalidations of single pages, because they are the most expensive.
      place(0x2 | 3 << 4 | domain << 16, at << 12, at: at)
      at += size
    }
    startQueue(at: memory, size: 7, isWide: isScalable)
    run("the machine survives the largest queue when it is full", seed: 2, rounds: 4) { _ in
      RemappingUnit.write64(Register.queueTail, (RemappingUnit.read64(Register.queueHead) &- size) & 0x7_ffff)
    }
  }

  /// Makes each wait write to the next descriptor, to itself, or to the previous descriptor.
  func queueThatWritesItself() {
    run("the machine survives waits that overwrite the queue", seed: 3, rounds: 24) { round in
      Pages.fill(memory, 4096, with: 0)
      var at: UInt64 = 0
      while at < 4096 {
        let target: UInt64
        switch (at / size &+ round) % 3 {
        case 0: target = (at + size) & 0xfff
        case 1: target = at
        default: target = (at &- size) & 0xfff
        }
        // The data that the wait writes is again a wait descriptor, or random.
        let data: UInt64 = round % 4 == 3 ? Random.next() >> 32 : 0x5 | 1 << 5
        place(0x5 | 1 << 5 | data << 32, memory + target, at: at)
        at += size
      }
      startQueue(at: memory, size: 0, isWide: isScalable)
      for _ in 0..<4 {
        RemappingUnit.write64(Register.queueTail, (RemappingUnit.read64(Register.queueHead) &- size) & 0xfff)
        RemappingUnit.write32(Register.faultStatus, 0x70)
      }
    }
  }

  /// Makes waits write to the unit's own tail, the APICs, configuration space, and addresses without memory.
  func waitsForElsewhere() {
    let places: InlineArray<8, UInt64> = [
      0xfed9_0088, 0xfed9_0018, 0xfee0_0300, 0xfec0_0010, 0xb000_8004, nowhere, .max & ~3, 0xffff_fffc,
    ]
    startQueue(at: memory, size: 0, isWide: isScalable)
    run("the machine survives waits that write to registers or where there is no memory", seed: 4, rounds: 100) {
      round in
      let at = RemappingUnit.read64(Register.queueTail)
      Pages.fill(memory + at, size, with: 0)
      place(0x5 | 1 << 5 | 1 << 4 | Random.next() << 32, places[Int(round % 8)], at: at)
      RemappingUnit.write64(Register.queueTail, (at + size) & 0xfff)
      RemappingUnit.write32(Register.faultStatus, 0x70)
      RemappingUnit.write32(Register.completionStatus, 1)
    }
  }

  func nonsense() {
    run("the machine survives random descriptors", seed: 5, rounds: 30) { round in
      var at: UInt64 = 0
      while at < 1024 {
        var low = Random.next()
        // Half of the descriptors have a valid type and few reserved bits.
        if at & 32 != 0 { low = low & 0x000f_ffff_ffff_003f & ~0xf | Random.next() % 9 }
        // Bit 63 puts a wait's address beyond all memory. Another attack tests waits that overwrite memory.
        place(low, Random.next() | 1 << 63, at: at)
        at += 16
      }
      startQueue(at: memory, size: 0, isWide: round % 3 != 0)
      RemappingUnit.write64(Register.queueTail, 1024)
      for _ in 0..<8 { RemappingUnit.write32(Register.faultStatus, 0x70) }
    }
  }

  func tails() {
    run("the machine survives random tails and queue addresses", seed: 6, rounds: 80) { round in
      let start: UInt64
      switch round % 6 {
      case 0: start = nowhere
      case 1: start = 0xfed9_0000
      case 2: start = Random.next() & 0xffff_ffff_f000 | 1 << 40
      case 3: start = RemappingUnit.queue
      case 4: start = sources.root
      default: start = memory
      }
      startQueue(at: start, size: start == memory ? Random.next() % 8 : 0, isWide: round % 2 != 0)
      for _ in 0..<4 {
        RemappingUnit.write64(Register.queueTail, Random.next())
        RemappingUnit.write32(Register.faultStatus, 0x70)
      }
      RemappingUnit.command(RemappingUnit.Command.queueEnable, on: false)
      RemappingUnit.write64(Register.queueTail, Random.next())
    }
  }

  // MARK: Tables

  /// Walks tables whose entries point to themselves, and changes them at the same time.
  func tablesOfThemselves(_ stage: PagingTables.Stage) {
    let root = Pages.take()
    for index in 0..<UInt64(512) { store64(root + index * 8, root | stage.rawValue) }
    if !isScalable {
      sources.of(source: edu.source).setLegacy(type: 0, table: root, domain: hostileDomain)
    } else if stage == .first {
      SourceTables.setFirstStage(entry, table: root, domain: hostileDomain)
    } else {
      SourceTables.setSecondStage(entry, table: root, domain: hostileDomain)
    }
    RemappingUnit.invalidateEverything(isScalable: isScalable)
    run("the machine survives tables that point to themselves", seed: 7, rounds: 30) { round in
      // Every address leads to the table itself, so the next walk uses the data that the device has written.
      _ = edu.copy(from: Random.next() & 0x7fff_ffff_f000, to: Random.next() & 0x7fff_ffff_fff8)
      let changed = root + Random.next() % 512 * 8
      store64(changed, round % 3 == 0 ? Random.next() : root | stage.rawValue)
      _ = RemappingUnit.invalidateTranslations(domain: hostileDomain)
      clearFaults()
    }
    for index in 0..<UInt64(512) { store64(root + index * 8, root | stage.rawValue) }
  }

  /// Uses one table for both nested stages, so that each level leads to that table again.
  func nestedTablesOfThemselves() {
    let root = Pages.take()
    // Valid for both stages at each level except the last: present, writable, user; readable, writable.
    for index in 0..<UInt64(512) { store64(root + index * 8, root | 7) }
    SourceTables.setNested(entry, table: root, over: root, accessedDirty: true, domain: hostileDomain)
    RemappingUnit.invalidateEverything(isScalable: true)
    run("the machine survives a table that points to itself and serves both stages", seed: 8, rounds: 30) { round in
      _ = edu.copy(from: Random.next() & 0x7fff_ffff_f000, to: Random.next() & 0x7fff_ffff_fff8)
      store64(root + Random.next() % 512 * 8, round % 3 == 0 ? Random.next() : root | 7)
      _ = RemappingUnit.invalidateTranslations(domain: hostileDomain)
      clearFaults()
    }
  }

  /// Writes random values to the function's own entries.
  func entries() {
    let context =
      isScalable ? sources.of(source: edu.source).scalableContextEntry : sources.of(source: edu.source).contextEntry
    let words: UInt64 = isScalable ? 4 : 2
    var kept: InlineArray<4, UInt64> = [0, 0, 0, 0]
    for word in 0..<words { kept[Int(word)] = load64(context + word * 8) }
    run("the machine survives random values in one function's entries", seed: 9, rounds: 50) { round in
      let chosen = Random.next() % words * 8
      store64(context + chosen, round % 2 == 0 ? Random.next() : sources.root | 1)
      _ = RemappingUnit.invalidateContexts()
      if isScalable { _ = RemappingUnit.invalidatePASID(Random.next() & 0xfffff, domain: hostileDomain) }
      _ = edu.copy(from: Random.next(), to: Random.next() & ~7)
      for word in 0..<words { store64(context + word * 8, kept[Int(word)]) }
      _ = RemappingUnit.invalidateContexts()
      clearFaults()
    }
  }

  // MARK: Registers

  /// Returns whether an offset belongs to an event's message registers. The attacks leave them out, because a random
  /// message would be an arbitrary interrupt.
  private static func isEvent(_ offset: UInt64) -> Bool {
    offset + 8 > 0x38 && offset < 0x48 || offset + 8 > 0xa0 && offset < 0xb0
  }

  private static func write(_ offset: UInt64, _ value: UInt64) {
    if value & 1 != 0, offset <= 0xff8 {
      RemappingUnit.write64(offset, value)
    } else if offset <= 0xffc {
      RemappingUnit.write32(offset, UInt32(truncatingIfNeeded: value >> 8))
    }
  }

  func registers() {
    run("the machine survives random writes to registers except those of translation", seed: 10, rounds: 300) { round in
      // Half of the offsets are in the range that has registers.
      let offset = Random.next() % (round % 2 == 0 ? 0x100 : 0x1000)
      if Self.isEvent(offset) || offset + 8 > 0x18 && offset < 0x28 { return }
      Self.write(offset, Random.next())
      _ = RemappingUnit.read64(offset & 0xff8)
    }
  }

  func allRegisters() {
    run("the machine survives random writes to all registers", seed: 11, rounds: 300, judgesDMA: false) { round in
      let offset = Random.next() % (round % 2 == 0 ? 0x100 : 0x1000)
      if Self.isEvent(offset) { return }
      Self.write(offset, Random.next())
      // A table address has no effect before the command that loads it.
      if round % 5 == 0 { RemappingUnit.write32(Register.globalCommand, UInt32(truncatingIfNeeded: Random.next())) }
    }
  }
}

func kernelMain() {
  guard let edu = Edu.find(), let hostile = Edu.find(after: edu) else {
    return Report.fail("there are fewer than two edu devices")
  }
  guard RemappingUnit.isThere else { return Report.fail("there is no VT-d unit") }
  LocalAPIC.start()
  guard let another = Processors.startAnother(patience: RemappingUnit.patience) else {
    return Report.fail("another processor does not start")
  }

  let isScalable = RemappingUnit.offers(RemappingUnit.scalableMode)
  let isFirst = isScalable && RemappingUnit.offers(RemappingUnit.firstStage)
  let tables = PagingTables(isFirst ? .first : .second)
  Worker.page = Pages.take()
  Worker.memory = (Pages.take(), Pages.take())
  Worker.edu = edu
  tables.map(source, to: Worker.memory.source, tables.stage.rawValue)
  tables.map(sink, to: Worker.memory.sink, tables.stage.rawValue)
  let sources = SourceTables(source: edu.source)
  let others = sources.of(source: hostile.source)
  var entry: UInt64 = 0
  if isScalable {
    let own = sources.makeScalable()
    entry = others.makeScalable()
    if isFirst {
      SourceTables.setFirstStage(own, table: tables.root, domain: domain)
    } else {
      SourceTables.setSecondStage(own, table: tables.root, domain: domain)
    }
  } else {
    sources.setLegacy(type: 0, table: tables.root, domain: domain)
  }
  guard RemappingUnit.translate(root: sources.root, isScalable: isScalable) else { return }
  Worker.judgesDMA = true
  let finished = Processors.finishedCount
  Processors.give({ Worker.work() }, to: another)
  Report.check("the other processor works", wait(ticks: RemappingUnit.patience) { Worker.done > 1 })

  let attack = Attack(
    edu: hostile, sources: sources, isScalable: isScalable, entry: entry, memory: Pages.take(512 << 10))
  attack.endlessQueue()
  attack.largestQueue()
  attack.queueThatWritesItself()
  attack.waitsForElsewhere()
  attack.nonsense()
  attack.tails()
  if !isScalable || RemappingUnit.offers(RemappingUnit.secondStage) { attack.tablesOfThemselves(.second) }
  if isFirst { attack.tablesOfThemselves(.first) }
  if RemappingUnit.offers(RemappingUnit.nestedTranslation) { attack.nestedTablesOfThemselves() }
  attack.entries()
  attack.registers()
  attack.allRegisters()

  Worker.stop()
  Report.check(
    "the other processor finishes", wait(ticks: RemappingUnit.patience) { Processors.finishedCount != finished }
  )
  Report.check("all DMA of the other processor is right", Worker.wrong == 0)
  put(Worker.done)
  put(" copies by the other processor\n")
}
