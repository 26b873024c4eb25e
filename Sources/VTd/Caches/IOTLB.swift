import Hardware

/// A port's translation cache: set-associative and of fixed size. Neither a hit nor a miss allocates memory.
///
/// An entry is a page of 4 KiB, 2 MiB or 1 GiB as a walk found it, tagged with the fields that select entries for
/// invalidation. An entry stays until software invalidates it or another page replaces it (VT-d 6.2.4).
struct IOTLB: Sendable {
  /// The tag of an entry without its page: domain, PASID and the stages that translated the page.
  struct Tag: Hashable, Sendable {
    enum Stages: UInt64, Sendable {
      case first = 1
      case second = 2
      case both = 3
    }

    /// domain[15:0] pasid[35:16] stages[41:40]
    let rawValue: UInt64

    init(domain: UInt16, pasid: UInt32, stages: Stages) {
      rawValue = UInt64(domain) | UInt64(pasid & 0xf_ffff) << 16 | stages.rawValue << 40
    }

    fileprivate init(rawValue: UInt64) { self.rawValue = rawValue }

    var domain: UInt16 { UInt16(truncatingIfNeeded: rawValue) }
    var pasid: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 16 & 0xf_ffff) }
    var stages: Stages? { Stages(rawValue: rawValue >> 40) }
  }

  private struct Entry: Sendable {
    /// First address of the page, with its size class plus one in the low bits. 0: the entry is empty.
    var page: UInt64 = 0
    var tag: UInt64 = 0
    /// First physical address, with the granted `DMAAccess` bits in the low bits.
    var output: UInt64 = 0
  }

  /// 4 KiB, 2 MiB and 1 GiB.
  private static let sizeClasses = 3
  private static let setBits: UInt64 = 8
  private static let ways = 2

  private var entries = [Entry](repeating: Entry(), count: (1 << Int(setBits)) * ways)
  /// Bit n: an entry of size class n has been stored since `removeAll()`.
  private var classesInUse: UInt8 = 0
  /// The way that the next insertion replaces when all ways of a set are full.
  private var victim = 0

  @inline(__always)
  private static func set(_ address: UInt64, shift: UInt64) -> Int {
    let page = address &>> shift
    return Int(truncatingIfNeeded: (page ^ page &>> setBits) & (1 &<< setBits &- 1)) &* ways
  }

  /// Returns log2 of the page size.
  @inline(__always)
  private static func shift(ofClass sizeClass: Int) -> UInt64 { 12 &+ 9 &* UInt64(truncatingIfNeeded: sizeClass) }

  /// - Returns: the cached page that contains `address` and grants `access`, or nil.
  @inline(__always)
  func lookup(_ address: UInt64, tag: Tag, access: DMAAccess) -> (output: UInt64, shift: UInt64)? {
    var classes = classesInUse
    var sizeClass = 0
    while classes != 0 {
      if classes & 1 != 0 {
        let shift = Self.shift(ofClass: sizeClass)
        let page = (address &>> shift) &<< shift | UInt64(truncatingIfNeeded: sizeClass &+ 1)
        let first = Self.set(address, shift: shift)
        for way in first..<first &+ Self.ways {
          let entry = entries[way]
          if entry.page == page, entry.tag == tag.rawValue, UInt64(access.rawValue) & ~entry.output & 0xfff == 0 {
            return (entry.output & ~0xfff, shift)
          }
        }
      }
      classes &>>= 1
      sizeClass &+= 1
    }
    return nil
  }

  /// Stores the page that a walk found. If the page overlaps the interrupt address range, before or after translation,
  /// stores only the 4 KiB around `address`, because the page does not translate interrupt addresses.
  /// - Returns: log2 of the stored page's size.
  @inline(__always)
  mutating func insert(_ mapping: Mapping, for address: UInt64, tag: Tag) -> UInt64 {
    var sizeClass = mapping.shift >= 30 ? 2 : mapping.shift >= 21 ? 1 : 0
    let output = mapping.address(of: address)
    if sizeClass > 0 {
      let mask = UInt64.lowBits(Int(Self.shift(ofClass: sizeClass)))
      let interrupts = WalkRules.interruptAddresses
      if interrupts.overlaps(address & ~mask...address | mask) || interrupts.overlaps(output & ~mask...output | mask) {
        sizeClass = 0
      }
    }
    let shift = Self.shift(ofClass: sizeClass)
    var granted: UInt64 = 0
    if mapping.readable { granted |= UInt64(DMAAccess.read.rawValue) }
    if mapping.writable { granted |= UInt64(DMAAccess.write.rawValue) }
    let page = (address &>> shift) &<< shift | UInt64(truncatingIfNeeded: sizeClass &+ 1)
    let entry = Entry(page: page, tag: tag.rawValue, output: (output &>> shift) &<< shift | granted)
    let first = Self.set(address, shift: shift)
    classesInUse |= 1 &<< UInt8(truncatingIfNeeded: sizeClass)
    var place = first &+ victim
    for way in first..<first &+ Self.ways {
      if entries[way].page == page, entries[way].tag == tag.rawValue {
        place = way
        break
      }
      if entries[way].page == 0 { place = way }
    }
    entries[place] = entry
    victim = (victim &+ 1) % Self.ways
    return shift
  }

  /// The cached pages, in no order.
  var pages: [CachedPage] {
    guard classesInUse != 0 else { return [] }
    return entries.lazy.filter { $0.page != 0 }.map { entry in
      let tag = Tag(rawValue: entry.tag)
      let granted = DMAAccess(rawValue: UInt8(truncatingIfNeeded: entry.output & 0xff))
      return CachedPage(
        input: entry.page & ~0xfff, output: entry.output & ~0xfff,
        size: 1 << Self.shift(ofClass: Int(entry.page & 0xfff) - 1), readable: granted.contains(.read),
        writable: granted.contains(.write), domain: tag.domain, pasid: tag.pasid,
        stages: tag.stages == .first ? .first : tag.stages == .second ? .second : .both)
    }
  }

  mutating func removeAll() {
    guard classesInUse != 0 else { return }
    for index in entries.indices { entries[index].page = 0 }
    classesInUse = 0
  }

  mutating func removeAll(where matches: (Tag) -> Bool) {
    guard classesInUse != 0 else { return }
    for index in entries.indices where entries[index].page != 0 && matches(Tag(rawValue: entries[index].tag)) {
      entries[index].page = 0
    }
  }

  /// Removes the entries whose page overlaps `range`.
  mutating func removeAll(in range: PageRange, where matches: (Tag) -> Bool) {
    for sizeClass in 0..<Self.sizeClasses where classesInUse & (1 &<< UInt8(truncatingIfNeeded: sizeClass)) != 0 {
      let shift = Self.shift(ofClass: sizeClass)
      let pages = range.first &>> shift...range.last &>> shift
      let classBits = UInt64(truncatingIfNeeded: sizeClass &+ 1)
      if pages.upperBound &- pages.lowerBound < 1 &<< (Self.setBits &- 2) {
        // The range is small: check the set of each page instead of every entry.
        for page in pages {
          let address = page &<< shift
          let first = Self.set(address, shift: shift)
          for way in first..<first &+ Self.ways
          where entries[way].page == address | classBits && matches(Tag(rawValue: entries[way].tag)) {
            entries[way].page = 0
          }
        }
      } else {
        for index in entries.indices where entries[index].page & 0xfff == classBits {
          let first = entries[index].page & ~0xfff
          if range.overlaps(first: first, last: first | UInt64.lowBits(Int(shift))),
            matches(Tag(rawValue: entries[index].tag))
          {
            entries[index].page = 0
          }
        }
      }
    }
  }
}
