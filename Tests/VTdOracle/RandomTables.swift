import Hardware

/// Random tables in a few pages, so that walks go deep, loop and cross, and random requests that use the same entries
/// again and again.
struct RandomTables {
  var random: SeededGenerator

  init(seed: UInt64) { random = SeededGenerator(seed: seed) }

  /// Returns one of `count` choices.
  mutating func choice(_ count: UInt64) -> UInt64 { random.next() % count }

  enum Stage {
    case first
    case second
  }

  /// Fills pages with entries that are usually present and valid.
  /// - Parameter targets: the pages that most entries point to.
  mutating func fill(_ pages: [UInt64], of guest: Guest, _ stage: Stage, to targets: [UInt64]) {
    for page in pages {
      for slot: UInt64 in 0..<512 {
        var entry: UInt64
        switch choice(16) {
        case 0..<9: entry = targets[Int(choice(UInt64(targets.count)))]
        case 9, 10: entry = choice(0x1000) << 12
        case 11: entry = (choice(8) << 30) | 0x80
        case 12: entry = (choice(64) << 21) | 0x80
        case 13: entry = 0xfee0_0000 | choice(4) << 12
        case 14: entry = 0xfee0_0000 - 0x20_0000 * choice(2) | 0x80
        default: entry = random.next() & 0xf_ffff_ffff_ffff
        }
        entry |= stage == .second ? 0x3 : 0x7
        if choice(16) == 0 { entry ^= 1 << choice(64) }
        if choice(8) == 0 { entry ^= 1 << choice(3) }
        guest.store(entry, at: page + slot * 8)
      }
    }
  }

  /// Returns an address whose index at each level is usually below 6.
  /// - Parameter bits: the width that the tables cover.
  mutating func address(bits: Int) -> UInt64 {
    var address = random.next() & 0xfff
    for level in 0..<5 { address |= choice(choice(4) == 0 ? 512 : 6) << UInt64(12 + 9 * level) }
    switch choice(8) {
    case 0: return address
    case 1: return 0xfee0_0000 - 0x2000 + choice(0x10_4000)
    default:
      address &= UInt64.lowBits(bits - 1)
      return choice(4) == 0 ? address | ~UInt64.lowBits(bits - 1) : address
    }
  }
}
