import Hardware
import VTd

/// The tables that a sequence of steps changes: few pages, so that steps affect each other, and mostly valid entries.
struct SequenceTables {
  /// The sources of requests: the third is in the upper half of its bus's contexts, the last on another bus.
  static let sources: [UInt16] = [0x18, 0x19, 0xc0, 0x100]
  /// The PASIDs that the tables have. PASID 65 is in the second PASID table of a directory.
  static let pasids: [UInt32] = [0, 1, 65]
  static let domains: [UInt16] = [1, 2, 3]

  let root: UInt64
  let contexts: [UInt64]
  let directories: [UInt64]
  let pasidTables: [UInt64]
  let first: [UInt64]
  let second: [UInt64]
  let isScalable: Bool
  private let guest: Guest

  init(_ guest: Guest, isScalable: Bool) {
    self.guest = guest
    self.isScalable = isScalable
    func pages(_ count: Int) -> [UInt64] { (0..<count).map { _ in guest.page() } }
    root = guest.page()
    contexts = pages(3)
    directories = pages(2)
    pasidTables = pages(2)
    first = pages(5)
    second = pages(5)
  }

  // MARK: The initial, valid tables

  func fill(_ choices: inout some Choices, pagesSeed: UInt64) {
    var random = RandomTables(seed: pagesSeed)
    if guest.unit.options.nested {
      // Few second-stage addresses, so that first-stage tables lead to first-stage tables.
      random.fill(first, of: guest, .first, to: [0, 0x1000, 0x2000, 0x20_0000, 0x4000_0000] + first)
      random.fill(second, of: guest, .second, to: second + first + first)
      random.leadToTables(second, of: guest, levels: 4, first: first)
    } else {
      random.fill(first, of: guest, .first, to: first)
      random.fill(second, of: guest, .second, to: second)
    }
    for source in Self.sources { storeRoot(source, valid: 1) }
    for directory in directories {
      for (index, table) in pasidTables.enumerated() { guest.store(table | 1, at: directory + UInt64(index) * 8) }
    }
    for source in Self.sources { storeContext(source, &choices, plain: true) }
    for table in isScalable ? pasidTables : [] {
      for pasid in Self.pasids { storePASID(table + UInt64(pasid % 64) * 64, &choices, plain: true) }
    }
  }

  private func contextPage(_ source: UInt16) -> UInt64 {
    source >> 8 != 0 ? contexts[2] : isScalable && source & 0x80 != 0 ? contexts[1] : contexts[0]
  }

  private func storeRoot(_ source: UInt16, valid: UInt64) {
    let upper: UInt64 = isScalable && source & 0x80 != 0 ? 8 : 0
    guest.store(contextPage(source) | valid, at: root + UInt64(source >> 8) * 16 + upper)
  }

  // MARK: One change

  /// Changes one entry of some level, usually to another valid one.
  /// - Returns: a description of the change.
  func change(_ choices: inout some Choices) -> String {
    switch choices.choice(16) {
    case 0:
      let source = choices.pick(Self.sources)
      storeRoot(source, valid: choices.pick([1, 1, 1, 0, 5]))
      return "root entry of 0x\(String(source, radix: 16))"
    case 1..<4:
      let source = choices.pick(Self.sources)
      let place = storeContext(source, &choices)
      return "context entry of 0x\(String(source, radix: 16)): \(text(place, 2))"
    case 4 where isScalable:
      let place = choices.pick(directories) + choices.choice(2) * 8
      guest.store(choices.pick(pasidTables) | choices.pick([1, 1, 1, 1, 3, 0, 2, 9]), at: place)
      return "PASID directory entry: \(text(place, 1))"
    case 4..<8 where isScalable:
      let place = choices.pick(pasidTables) + UInt64(choices.pick(Self.pasids) % 64) * 64
      storePASID(place, &choices)
      return "PASID-table entry: \(text(place, 3))"
    default:
      let isFirst = isScalable && guest.unit.options.firstStage && choices.choice(2) == 0
      let pages = isFirst ? first : second
      let place = choices.pick(pages) + choices.choice(8) * 8
      if choices.choice(3) == 0 {
        guest.store(
          guest.load(place) ^ choices.pick([1, 2, 3, 4, 0x80, 1 << 52, 1 << 50, 0x20_0000, 0x1000]), at: place)
      } else {
        let leaf = choices.choice(64) << 21 | choices.pick([0, 0x80])
        let target = choices.choice(4) == 0 ? leaf : choices.pick(pages)
        guest.store(target | (isFirst ? 0x7 : 0x3), at: place)
      }
      return "paging entry: \(text(place, 1))"
    }
  }

  /// Changes an entry that a translation uses: other rights, another page, or not present.
  /// - Returns: a description of the change.
  func change(entryAt place: UInt64, _ choices: inout some Choices) -> String {
    guest.store(guest.load(place) ^ choices.pick([1, 2, 3, 0x1000, 0x3000, 0x20_0000, 0x60_0000, 1 << 30]), at: place)
    return "paging entry: \(text(place, 1))"
  }

  /// Returns words of memory as text.
  private func text(_ place: UInt64, _ count: UInt64) -> String {
    let words = (0..<count).map { "0x" + String(guest.load(place + $0 * 8), radix: 16) }
    return "0x\(String(place, radix: 16)) = " + words.joined(separator: " ")
  }

  /// - Returns: the address of the entry.
  @discardableResult
  private func storeContext(_ source: UInt16, _ choices: inout some Choices, plain: Bool = false) -> UInt64 {
    let low: UInt64
    let high: UInt64
    if isScalable {
      let place = contextPage(source) + UInt64(source & 0x7f) * 32
      let enable: UInt64 = guest.unit.options.pasidBits > 0 ? 8 : 0
      let odd: UInt64 = plain ? 0 : choices.pick([0, 0, 0, 0, 0, 0, 2, 2, 4, 8, 0x10, 1])
      low = (choices.pick(directories) | 1 | enable) ^ odd
      let privilege: UInt64 = !plain && choices.rarely(8) ? 1 << 20 : 0
      high = UInt64(choices.pick(Self.pasids)) | privilege
      guest.store(low, at: place)
      guest.store(high, at: place + 8)
      return place
    }
    let place = contextPage(source) + UInt64(source & 0xff) * 16
    let odd: UInt64 = plain ? 0 : choices.pick([0, 0, 0, 0, 0, 2, 2, 4, 8, 0x10, 1])
    low = (choices.pick(second) | 1) ^ odd
    let width: UInt64 = plain ? 2 : choices.pick([2, 2, 2, 1, 3, 0])
    high = UInt64(choices.pick(Self.domains)) << 8 | width
    guest.store(low, at: place)
    guest.store(high, at: place + 8)
    return place
  }

  private func storePASID(_ place: UInt64, _ choices: inout some Choices, plain: Bool = false) {
    let options = guest.unit.options
    var types: [UInt64] = []
    if options.firstStage { types += [1, 1] }
    if options.offersScalableSecondStage { types += [2, 2] }
    if options.nested { types += [3, 3, 3] }
    if !plain { types += [4, 0] }
    let type = choices.pick(types)
    // One of the second-stage tables maps the first stage's tables.
    let below = type == 3 && choices.choice(4) != 0 ? second[0] : choices.pick(second)
    var first: UInt64 = below | type << 6 | 2 << 2 | 1
    var second: UInt64 = UInt64(choices.pick(Self.domains)) | (options.nested ? 1 << 23 : 0)
    var third: UInt64 = type == 3 ? choices.pick([0, 0, 0x1000]) : choices.pick(self.first)
    if type == 4 || type == 2 { third = 0 }
    if !plain {
      if choices.rarely(8) { first ^= choices.pick([1, 2, 0x20, 0x400, 0xc, 0x4]) }
      if options.nested, choices.choice(3) == 0 { first |= 1 << 9 }
      if choices.rarely(16) { second ^= choices.pick([1 << 23, 1 << 24, 1 << 16]) }
      if choices.rarely(4) { third ^= choices.pick([1, 0x10, 0x11, 0x80, 4, 2]) }
    }
    guest.store(first, at: place)
    guest.store(second, at: place + 8)
    guest.store(third, at: place + 16)
  }
}
