import Hardware
import TestSupport
import VTd

/// A sequence of steps: tables change, software invalidates something, and requests are answered. Each answer must be
/// one that the caches may hold (`CacheModel`) or that the current tables give (`ReferenceTables`).
package struct InvalidationSequence<Source: Choices> {
  package enum Mode: Hashable, Sendable, CaseIterable {
    case legacy, secondStage, firstStage, nested
  }

  package private(set) var accesses = 0
  /// The number of answers that only a cache can have given.
  package private(set) var staleAnswers = 0
  package private(set) var invalidations = 0
  package private(set) var passed = 0
  /// The numbers of interrupt requests that were delivered, and of those whose answer only the cache can have given.
  package var deliveredInterrupts: Int { interrupts.delivered }
  package var staleInterrupts: Int { interrupts.staleAnswers }
  package private(set) var difference: Comparison.Difference?

  private let label: String
  private let guest: Guest
  private let layout: SequenceTables
  private var interrupts: SequenceInterrupts
  private var tables: ReferenceTables
  private var ports: [(port: any DMAPort, model: CacheModel)] = []
  /// Remotes of two of the functions.
  private var remotes: [SequenceRemote] = []
  package private(set) var remoteAccesses = 0
  private var choices: Source
  private var addresses: [UInt64] = []
  private var isEnabled = true
  private var stepsSinceAll = 0
  /// The last steps, if they are recorded.
  private var trail: [String]?

  /// - Parameters:
  ///   - label: the name of the sequence in a difference, such as its seed.
  ///   - pagesSeed: the seed of the first paging tables.
  ///   - keepsTrail: whether a difference includes the steps before it.
  package init(
    _ mode: Mode, choices: Source, pagesSeed: UInt64, label: String, keepsTrail: Bool = false
  ) throws {
    self.label = "\(mode), \(label)"
    trail = keepsTrail ? [] : nil
    var choices = choices
    let hasPASIDs = mode != .legacy && choices.choice(4) != 0
    let isWide = choices.choice(8) == 1
    let gigabyte = choices.choice(4) != 1
    let cachesRefusals = choices.choice(3) == 1
    // The sequence uses few pages, from 1 MiB on.
    guest = try Guest(memory: HeapMemory(size: 2 << 20)) {
      $0.scalableMode = mode != .legacy
      $0.firstStage = mode == .firstStage || mode == .nested
      $0.nested = mode == .nested
      $0.pasidBits = hasPASIDs ? 20 : 0
      $0.addressWidth = isWide ? 57 : 48
      $0.fs1gp = gigabyte
      $0.snoopControl = isWide
      $0.cachingMode = cachesRefusals
    }
    layout = SequenceTables(guest, isScalable: mode != .legacy)
    layout.fill(&choices, pagesSeed: pagesSeed)
    tables = ReferenceTables(
      memory: guest.memory, options: guest.unit.options, root: layout.root, isScalable: mode != .legacy)
    interrupts = SequenceInterrupts(guest, &choices)
    self.choices = choices
    for source in SequenceTables.sources { addPort(source, nil) }
    if hasPASIDs {
      addPort(0x18, 1)
      addPort(0xc0, 65)
      addPort(0xc0, 1)
    }
    for (source, asksAgain) in [(UInt16(0x18), true), (0xc0, false)] {
      remotes.append(
        SequenceRemote(guest, source, asksAgainToWrite: asksAgain, isScalable: layout.isScalable))
    }
    var random = RandomTables(seed: pagesSeed ^ 0xadd)
    addresses = (0..<24).map { _ in random.address(bits: 48) }
    guest.setRootTable(layout.root, scalable: mode != .legacy)
    guest.enableQueue(wide: mode != .legacy)
    guest.enableTranslation()
  }

  private mutating func addPort(_ source: UInt16, _ pasid: UInt32?) {
    let model = CacheModel(
      source: source, pasid: pasid, isScalable: layout.isScalable, cachingMode: guest.unit.options.cachingMode == true)
    ports.append((guest.port(RequesterID(rawValue: source), pasid: pasid), model))
  }

  /// Runs until that many requests were answered, the choices end, or there is a difference.
  package mutating func run(accesses count: Int) {
    while accesses < count, difference == nil, !choices.isAtEnd { step() }
  }

  private mutating func step() {
    stepsSinceAll += 1
    switch choices.choice(32) {
    case 0..<5:
      let change = layout.change(&choices)
      note(change)
    case 5..<8:
      let address = choices.pick(addresses)
      let request = SequenceInvalidation(&choices, isScalable: layout.isScalable, address: address)
      invalidate(request)
    case 8 where stepsSinceAll > 200: forgetEverything()
    case 9 where choices.rarely(16): setRootTable()
    case 10 where choices.rarely(8): toggleTranslation()
    case 12..<15: interrupt()
    case 15..<18: revisit()
    case 11: addresses[Int(choices.choice(UInt64(addresses.count)))] = randomAddress()
    case 18..<22: remoteAccess()
    default: access()
    }
  }

  private mutating func randomAddress() -> UInt64 {
    var address = choices.bits() & 0xfff
    for level: UInt64 in 0..<4 { address |= choices.choice(8) << (12 + 9 * level) }
    return choices.rarely(16) ? 0xfee0_0000 | address & 0xf_ffff : address
  }

  // MARK: Requests

  private mutating func access() {
    let index = Int(choices.choice(UInt64(ports.count)))
    // Repeat one of the addresses, perhaps at another place of its page or in another page.
    let address = choices.pick(addresses) ^ choices.pick([0, 0, 0, 0x8, 0x1000, 0x1_0000])
    _ = request(index, address, choices.choice(3) == 0)
  }

  /// - Returns: whether the answer was one of the permitted ones.
  private mutating func request(_ index: Int, _ address: UInt64, _ write: Bool) -> Bool {
    accesses += 1
    if isEnabled {
      let (all, now) = ports[index].model.answers(address, write: write, tables)
      compare(all, now: now, port: index, address, write)
    } else {
      compare([.at(address)], now: .at(address), port: index, address, write)
    }
    return difference == nil
  }

  private mutating func compare(
    _ all: Set<ReferenceWalker.Verdict>, now: ReferenceWalker.Verdict, port: Int, _ address: UInt64, _ write: Bool
  ) {
    let actual: ReferenceWalker.Verdict
    switch ports[port].port.answer(address, count: 1, write ? .write : .read) {
    case .at(let output, _):
      actual = .at(output)
      passed += 1
    case .refused: actual = .fault(guest.takeFault()?.reason ?? 0)
    }
    if actual != now { staleAnswers += 1 }
    let asked = "\(write ? "write" : "read") 0x\(hex(address)) by port \(port)"
    note("\(asked): \(actual), now \(now)")
    guard !all.contains(actual) else { return }
    let source = ports[port].model.source
    let pasid = ports[port].model.pasid.map { ", PASID \($0)" } ?? ""
    difference = Comparison.Difference(
      description: """
        \(label), request \(accesses): \(write ? "write" : "read") 0x\(hex(address)) from 0x\(hex(UInt64(source)))\(pasid): \
        the unit says \(actual), the tables \(now), caches might say \(all.filter { $0 != now })\(trail?.joined() ?? "")
        """)
  }

  private mutating func note(_ text: @autoclosure () -> String) {
    guard trail != nil else { return }
    let line = "\n  " + text()
    trail?.append(line)
    if trail?.count ?? 0 > 60 { trail?.removeFirst(20) }
  }

  private func hex(_ value: UInt64) -> String { String(value, radix: 16) }

  /// Makes a request, changes an entry that the request used, usually invalidates something, and repeats the request.
  /// By chance alone, this combination would be rare.
  private mutating func revisit() {
    let index = Int(choices.choice(UInt64(ports.count)))
    let address = choices.pick(addresses)
    let write = choices.choice(3) == 0
    guard isEnabled, request(index, address, write), let context = try? tables.context(of: ports[index].model.source),
      let path = try? tables.path(context, pasid: ports[index].model.pasid)
    else { return }
    let entries = tables.walk(path, address, write: write).entries
    if !entries.isEmpty {
      let change = layout.change(entryAt: choices.pick(entries), &choices)
      note(change)
    }
    if choices.choice(4) != 0 {
      let aim = SequenceInvalidation.Aim(domain: path.domain, pasid: path.pasid, source: ports[index].model.source)
      invalidate(SequenceInvalidation(&choices, isScalable: layout.isScalable, address: address, at: aim))
    }
    if difference == nil { _ = request(index, address, write) }
  }

  /// Makes an access by a remote, and often changes and invalidates an entry that the access used.
  private mutating func remoteAccess() {
    let index = Int(choices.choice(UInt64(remotes.count)))
    let address = choices.pick(addresses) ^ choices.pick([0, 0, 0, 0x8, 0x1000, 0x1_0000])
    let write = choices.choice(3) == 0
    remoteAccesses += 1
    let wrong = remotes[index].access(address, write: write, tables, isEnabled: isEnabled, guest)
    let asked = "\(write ? "write" : "read") 0x\(hex(address)) by remote \(index)"
    note(asked)
    report(wrong)
    let source = SequenceTables.sources[index * 2]
    guard wrong == nil, isEnabled, choices.choice(2) == 0, let context = try? tables.context(of: source),
      let path = try? tables.path(context, pasid: nil)
    else { return }
    let entries = tables.walk(path, address, write: write).entries
    if !entries.isEmpty {
      let change = layout.change(entryAt: choices.pick(entries), &choices)
      note(change)
    }
    let aim = SequenceInvalidation.Aim(domain: path.domain, pasid: path.pasid, source: source)
    invalidate(SequenceInvalidation(&choices, isScalable: layout.isScalable, address: address, at: aim))
  }

  /// Checks that each mapping that a remote still holds is one that a cache may hold.
  private mutating func checkRemotes() {
    for remote in remotes where difference == nil { report(remote.check(tables, isEnabled: isEnabled)) }
  }

  private mutating func report(_ wrong: String?) {
    guard let wrong, difference == nil else { return }
    difference = Comparison.Difference(description: "\(label): \(wrong)\(trail?.joined() ?? "")")
  }

  // MARK: Interrupts

  private mutating func interrupt() {
    switch choices.choice(8) {
    case 0..<2:
      let change = interrupts.change(&choices)
      note(change)
    case 2:
      invalidations += 1
      if let text = interrupts.invalidate(&choices) {
        note(text)
      } else {
        difference = Comparison.Difference(description: "\(label): interrupt entries are not invalidated")
      }
    default:
      accesses += 1
      guard let wrong = interrupts.request(&choices) else { return }
      difference = Comparison.Difference(description: "\(label): \(wrong)\(trail?.joined() ?? "")")
    }
  }

  // MARK: Invalidations

  private mutating func invalidate(_ request: SequenceInvalidation) {
    invalidations += 1
    note("\(request.invalidation)")
    // Scalable mode ignores the invalidation registers (VT-d 6.5.1).
    guard request.submit(to: guest, byRegister: choices.choice(4) == 0 && !layout.isScalable) else {
      difference = Comparison.Difference(
        description: "\(label), after request \(accesses): \(request.invalidation) is not completed")
      return
    }
    for index in ports.indices { ports[index].model.invalidate(request.invalidation) }
    for index in remotes.indices { remotes[index].invalidate(request.invalidation) }
    checkRemotes()
  }

  /// Invalidates everything as careful software does: contexts, PASIDs, pages, in this order.
  private mutating func forgetEverything() {
    stepsSinceAll = 0
    invalidations += 1
    note("everything invalidated")
    let done =
      layout.isScalable
      ? guest.submitAndWait([0x11, 0], [0x37, 0], [0x12, 0]) : guest.submitAndWait([0x11, 0], [0x12, 0])
    if !done {
      difference = Comparison.Difference(description: "\(label): a global invalidation is not completed")
    }
    for index in ports.indices { ports[index].model.forgetAll() }
    for index in remotes.indices { remotes[index].forgetAll() }
    checkRemotes()
  }

  /// Sets the root table and invalidates everything, as software must (VT-d 6.6).
  private mutating func setRootTable() {
    guest.setRootTable(layout.root, scalable: layout.isScalable)
    forgetEverything()
  }

  /// Turns translation off or on. Turning it off empties the caches of a unit with scalable mode, but not those of a
  /// unit without.
  private mutating func toggleTranslation() {
    isEnabled.toggle()
    let text = isEnabled ? "translation on" : "translation off"
    note(text)
    if isEnabled { guest.command(set: 31) } else { guest.command(clear: 31) }
    // Each change of the mode takes all mappings of remotes.
    for index in remotes.indices { remotes[index].forgetAll() }
    checkRemotes()
    if !isEnabled, guest.unit.options.scalableMode {
      for index in ports.indices { ports[index].model.forgetAll() }
    }
  }
}

extension InvalidationSequence where Source == RandomChoices {
  /// Runs the sequence of a seed, up to the first difference.
  package static func run(_ mode: Mode, seed: UInt64, accesses: Int) throws -> InvalidationSequence {
    var sequence = try of(mode, seed: seed, keepsTrail: false)
    sequence.run(accesses: accesses)
    guard sequence.difference != nil else { return sequence }
    // Run the sequence again to record the steps before the difference.
    sequence = try of(mode, seed: seed, keepsTrail: true)
    sequence.run(accesses: accesses)
    return sequence
  }

  private static func of(_ mode: Mode, seed: UInt64, keepsTrail: Bool) throws -> InvalidationSequence {
    try InvalidationSequence(
      mode, choices: RandomChoices(seed: seed), pagesSeed: seed, label: "seed \(seed)", keepsTrail: keepsTrail)
  }
}
