import Hardware
import VTd

/// Interrupt remapping in a sequence of steps: a table of a few changing entries, invalidations of the interrupt entry
/// cache, and requests. Each request must be remapped by the current entry, or by a former valid one that no
/// invalidation has covered since (VT-d 5.1, 6.2.6).
struct SequenceInterrupts {
  /// An entry's low and high 64 bits.
  private struct Entry: Hashable {
    var low: UInt64
    var high: UInt64
  }

  private enum Verdict: Hashable {
    case message(InterruptMessage)
    /// The fault reason, and whether it is not recorded.
    case blocked(UInt8, silent: Bool)
  }

  private static let count: UInt64 = 32

  private let guest: Guest
  private let table: UInt64
  private let isExtended: Bool
  private let passesCompatibility: Bool
  private var cached: [UInt64: Set<Entry>] = [:]
  private(set) var delivered = 0
  /// The number of answers that only the cache can have given.
  private(set) var staleAnswers = 0

  /// Sets up the table and enables remapping.
  init(_ guest: Guest, _ choices: inout some Choices) {
    self.guest = guest
    table = guest.page()
    isExtended = choices.choice(2) == 0
    passesCompatibility = choices.choice(2) == 0
    for index in 0..<Self.count { Self.store(&choices, at: table + index * 16, in: guest, isExtended, plain: true) }
    guest.write64(0xb8, table | (isExtended ? 0x800 : 0) | 4)
    guest.command(set: 24)
    guest.command(set: 25)
    if passesCompatibility { guest.command(set: 23) }
  }

  private static func store(
    _ choices: inout some Choices, at place: UInt64, in guest: Guest, _ isExtended: Bool, plain: Bool = false
  ) {
    let destination = isExtended ? choices.choice(256) << 32 | choices.choice(4) << 56 : choices.choice(256) << 40
    var low = 1 | choices.choice(256) << 16 | choices.choice(16) << 2 | choices.choice(3) << 5 | destination
    var high = UInt64(choices.pick(SequenceTables.sources)) | choices.pick([0, 0, 1, 1, 2]) << 18
    if !plain {
      high |= choices.choice(4) << 16
      low ^= choices.pick([0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 0x8000, 0x1000, 1 << 24, 0x100, 1 << 36])
      high ^= choices.pick([0, 0, 0, 0, 0, 0, 0, 1 << 20, 1 << 63, 3 << 18])
    }
    guest.store(low, at: place)
    guest.store(high, at: place + 8)
  }

  /// - Returns: a description of the change.
  mutating func change(_ choices: inout some Choices) -> String {
    let index = choices.choice(8)
    Self.store(&choices, at: table + index * 16, in: guest, isExtended)
    let words = (guest.load(table + index * 16), guest.load(table + index * 16 + 8))
    return "interrupt entry \(index): 0x\(String(words.0, radix: 16)) 0x\(String(words.1, radix: 16))"
  }

  /// - Returns: a description, or nil if the unit does not report completion.
  mutating func invalidate(_ choices: inout some Choices) -> String? {
    if choices.choice(4) == 0 {
      guard guest.submitAndWait([4, 0]) else { return nil }
      cached = [:]
      return "all interrupt entries invalidated"
    }
    let index = choices.choice(8)
    let mask: UInt64 = choices.pick([0, 0, 1, 2, 3])
    guard guest.submitAndWait([0x14 | mask << 27 | index << 32, 0]) else { return nil }
    for covered in 0..<Self.count where covered >> mask == index >> mask { cached[covered] = nil }
    return "interrupt entries at \(index), mask \(mask), invalidated"
  }

  // MARK: Requests

  /// Makes one interrupt request.
  /// - Returns: what the unit did wrong; nil if nothing.
  mutating func request(_ choices: inout some Choices) -> String? {
    let source = choices.pick(SequenceTables.sources)
    let index = choices.rarely(16) ? choices.choice(64) : choices.choice(8)
    var message = InterruptMessage(address: 0xfee0_0010 | index << 5, data: 0)
    switch choices.choice(8) {
    case 0: message = InterruptMessage(address: 0xfee0_0000 | choices.choice(256) << 12, data: 0x41)
    case 1:
      // With a subhandle.
      message.address = 0xfee0_0018 | (index & ~3) << 5
      message.data = UInt32(index & 3) | (choices.rarely(8) ? 0x1_0000 : 0)
    case 2 where choices.rarely(4): message.address |= 4  // bit 15 of the handle
    default: break
    }
    let (all, now) = verdicts(message, source)
    let result = guest.unit.remap(message, from: RequesterID(rawValue: source), recordFault: true)
    let fault = guest.takeFault()
    let actual: Verdict
    switch result {
    case .deliver(let remapped): actual = .message(remapped)
    case .blocked(let reason): actual = .blocked(reason.rawValue, silent: fault == nil)
    }
    if let fault, case .blocked(let reason, _) = actual, fault.reason != reason || fault.source != source {
      return "\(message) from \(source) is blocked for \(reason), and recorded as \(fault)"
    }
    if case .message = actual { delivered += 1 }
    if actual != now { staleAnswers += 1 }
    return all.contains(actual) ? nil : "\(message) from \(source): \(actual), not \(now) nor any of \(all)"
  }

  private mutating func verdicts(_ message: InterruptMessage, _ source: UInt16) -> (Set<Verdict>, now: Verdict) {
    guard message.address & 0x10 != 0 else {
      let verdict: Verdict =
        isExtended || !passesCompatibility ? .blocked(0x25, silent: false) : .message(message)
      return ([verdict], verdict)
    }
    let subhandle = message.address & 8 != 0
    if subhandle, message.data > 0xffff { return ([.blocked(0x20, silent: false)], .blocked(0x20, silent: false)) }
    let handle = message.address >> 5 & 0x7fff | (message.address & 4) << 13
    let index = subhandle ? handle + UInt64(message.data) : handle
    if index >= Self.count { return ([.blocked(0x21, silent: false)], .blocked(0x21, silent: false)) }
    let entry = Entry(low: guest.load(table + index * 16), high: guest.load(table + index * 16 + 8))
    let now: Verdict
    if entry.low & 1 == 0 {
      now = .blocked(0x22, silent: entry.low & 2 != 0)
    } else if isWrong(entry) {
      now = .blocked(0x24, silent: entry.low & 2 != 0)
    } else {
      cached[index, default: []].insert(entry)
      now = verdict(of: entry, source)
    }
    return (Set(cached[index, default: []].map { verdict(of: $0, source) }).union([now]), now)
  }

  private func isWrong(_ entry: Entry) -> Bool {
    // IM is reserved without posting, as are the bits beyond an 8-bit destination.
    let reserved: UInt64 = isExtended ? 0xff00_f000 : 0xffff_00ff_ff00_f000
    return entry.low & reserved != 0 || entry.high >> 20 != 0
  }

  private func verdict(of entry: Entry, _ source: UInt16) -> Verdict {
    let identifier = UInt16(truncatingIfNeeded: entry.high)
    let ignored: UInt16 = [0, 4, 6, 7][Int(entry.high >> 16 & 3)]
    let isFromThere: Bool
    switch entry.high >> 18 & 3 {
    case 0: isFromThere = true
    case 1: isFromThere = identifier | ignored == source | ignored
    case 2:
      isFromThere =
        (identifier >> 8...max(identifier >> 8, identifier & 0xff)).contains(source >> 8)
        && identifier >> 8 <= identifier & 0xff
    default: isFromThere = false
    }
    guard isFromThere else { return .blocked(0x26, silent: entry.low & 2 != 0) }
    let destination = isExtended ? entry.low >> 32 : entry.low >> 40 & 0xff
    let flags = entry.low & 0xc  // DM and RH have the same positions in the message
    let address = 0xfee0_0000 + (destination % 256) * 0x1000 + flags + (destination / 256) << 40
    let data = entry.low >> 16 & 0xff | (entry.low >> 5 & 7) << 8 | 1 << 14 | (entry.low >> 4 & 1) << 15
    return .message(InterruptMessage(address: address, data: UInt32(data)))
  }
}
