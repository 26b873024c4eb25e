import Hardware
import VTd

/// Reads the unit's tables from the root table on, independently of the unit's code. Each step is a function of the
/// current memory, and nothing is kept.
struct ReferenceTables {
  /// A request that the tables refuse.
  struct Refusal: Error, Hashable {
    let code: UInt8
    /// Whether FPD suppresses the fault.
    let silent: Bool

    init(_ code: UInt8, silent: Bool = false) {
      self.code = code
      self.silent = silent
    }

    /// The recorded reason; 0 if the fault is not recorded.
    var reason: UInt8 { silent ? 0 : code }
  }

  /// A valid context entry of either mode.
  struct Context: Hashable {
    var low: UInt64
    var high: UInt64
    var isScalable: Bool

    var silent: Bool { low & 2 != 0 }
    /// Valid only in legacy mode.
    var domain: UInt16 { UInt16(truncatingIfNeeded: high >> 8) }
  }

  /// What translates a request, and the tags of its pages in caches.
  struct Path: Hashable {
    enum Kind { case passThrough, first, second, nested }
    var kind: Kind
    var domain: UInt16
    var pasid: UInt32
    var isScalable: Bool
    var firstRoot: UInt64 = 0
    var firstLevels = 4
    var secondRoot: UInt64 = 0
    var secondLevels = 4
    var supervisor = false
    var writeProtect = false
    var extendedAccessed = false
    var snooped = true
    var marks = false
    var silent: Bool
  }

  let memory: any PhysicalMemory
  let options: UnitOptions
  var root: UInt64 = 0
  var isScalable: Bool

  private var width: Int { options.hostAddressWidth }

  /// Returns whether an address exceeds the host address width.
  private func beyond(_ address: UInt64) -> Bool { address >> UInt64(width) != 0 }

  private func pair(_ address: UInt64) -> (UInt64, UInt64)? {
    guard let low = memory.loadUInt64(at: address), let high = memory.loadUInt64(at: address + 8) else { return nil }
    return (low, high)
  }

  private func bits(_ value: UInt64, _ low: Int, _ high: Int) -> UInt64 {
    value >> UInt64(low) & ((1 << UInt64(high - low + 1)) - 1)
  }

  private func page(_ value: UInt64) -> UInt64 { value / 4096 * 4096 }

  // MARK: Context entries

  func context(of source: UInt16) throws(Refusal) -> Context {
    let bus = UInt64(source >> 8)
    let function = UInt64(source & 0xff)
    guard let entry = pair(root + bus * 16) else { throw Refusal(isScalable ? 0x38 : 0x08) }
    let half = isScalable && function >= 128 ? entry.1 : entry.0
    if half & 1 == 0 { throw Refusal(isScalable ? 0x39 : 0x01) }
    if bits(half, 1, 11) != 0 || beyond(half) || !isScalable && entry.1 != 0 {
      throw Refusal(isScalable ? 0x3a : 0x0a)
    }
    return isScalable
      ? try scalable(page(half) + function % 128 * 32) : try legacy(page(half) + function * 16)
  }

  private func legacy(_ address: UInt64) throws(Refusal) -> Context {
    guard let (low, high) = pair(address) else { throw Refusal(0x09) }
    let silent = bits(low, 1, 1) == 1
    if low & 1 == 0 { throw Refusal(0x02, silent: silent) }
    let type = bits(low, 2, 3)
    if bits(low, 4, 11) != 0 || type != 2 && beyond(low) || bits(high, 7, 7) != 0 || bits(high, 24, 63) != 0 {
      throw Refusal(0x0b, silent: silent)
    }
    let typeFits = type == 0 || type == 1 && options.deviceIOTLB || type == 2 && options.passThrough
    if secondStageLevels(bits(high, 0, 2)) == nil || !typeFits { throw Refusal(0x03, silent: silent) }
    return Context(low: low, high: high, isScalable: false)
  }

  private func scalable(_ address: UInt64) throws(Refusal) -> Context {
    guard let (low, high) = pair(address), let (third, fourth) = pair(address + 16) else { throw Refusal(0x40) }
    let silent = bits(low, 1, 1) == 1
    if low & 1 == 0 { throw Refusal(0x41, silent: silent) }
    var wrong = bits(low, 4, 8) != 0 || beyond(low) || bits(high, 21, 63) != 0 || third | fourth != 0
    if !options.deviceIOTLB && bits(low, 2, 2) != 0 { wrong = true }
    if options.pasidBits == 0 && bits(low, 3, 3) != 0 { wrong = true }
    if !options.offersScalableSecondStage && bits(high, 20, 20) != 0 { wrong = true }
    if wrong { throw Refusal(0x42, silent: silent) }
    return Context(low: low, high: high, isScalable: true)
  }

  /// Returns the levels for AW, or nil if CAP.SAGAW does not offer them.
  private func secondStageLevels(_ field: UInt64) -> Int? {
    guard options.dmaTranslation else { return nil }
    return switch field {
    case 1: 3
    case 2 where options.addressWidth >= 48: 4
    case 3 where options.addressWidth >= 57: 5
    default: nil
    }
  }

  // MARK: PASID tables

  /// Returns the PASID that a request uses: its own, or RID_PASID, which x-nested offers.
  func pasid(_ own: UInt32?, _ context: Context) -> UInt32 {
    own ?? (options.nested ? UInt32(bits(context.high, 0, 19)) : 0)
  }

  /// - Parameter own: the PASID of the request.
  func path(_ context: Context, pasid own: UInt32?) throws(Refusal) -> Path {
    guard context.isScalable else { return legacyPath(context) }
    if own != nil && bits(context.low, 3, 3) == 0 { throw Refusal(0x45, silent: context.silent) }
    let pasid = pasid(own, context)
    if own != nil && pasid / (1 << UInt32(options.pasidBits)) != 0 { throw Refusal(0x46, silent: context.silent) }
    if UInt64(pasid / 64) >= 128 << bits(context.low, 9, 11) {
      throw Refusal(own == nil ? 0x48 : 0x46, silent: context.silent)
    }
    guard let directory = memory.loadUInt64(at: page(context.low) + UInt64(pasid / 64) * 8) else {
      throw Refusal(0x50, silent: context.silent)
    }
    var silent = context.silent || bits(directory, 1, 1) == 1
    if directory & 1 == 0 { throw Refusal(0x51, silent: silent) }
    if bits(directory, 2, 11) != 0 || beyond(directory) { throw Refusal(0x52, silent: silent) }
    var words: [UInt64] = []
    for word: UInt64 in 0..<8 {
      guard let value = memory.loadUInt64(at: page(directory) + UInt64(pasid % 64) * 64 + word * 8) else {
        throw Refusal(0x58, silent: silent)
      }
      words.append(value)
    }
    silent = silent || bits(words[0], 1, 1) == 1
    if words[0] & 1 == 0 { throw Refusal(0x59, silent: silent) }
    if isWrong(words) { throw Refusal(0x5a, silent: silent) }
    var path = Path(
      kind: .passThrough, domain: UInt16(truncatingIfNeeded: words[1]), pasid: pasid, isScalable: true, silent: silent)
    path.snooped = !(options.nested || options.svm) || bits(words[1], 23, 23) == 1
    switch bits(words[0], 6, 8) {
    case 1 where options.firstStage: path.kind = .first
    case 2 where options.offersScalableSecondStage: path.kind = .second
    case 3 where options.nested: path.kind = .nested
    case 4 where options.passThrough: break
    default: throw Refusal(0x5b, silent: silent)
    }
    if path.kind == .second || path.kind == .nested {
      guard let levels = secondStageLevels(bits(words[0], 2, 4)) else { throw Refusal(0x5b, silent: silent) }
      path.secondLevels = levels
      path.secondRoot = page(words[0])
      path.marks = bits(words[0], 9, 9) == 1
    }
    if path.kind == .first || path.kind == .nested {
      switch bits(words[2], 2, 3) {
      case 0: path.firstLevels = 4
      case 1 where options.addressWidth >= 57: path.firstLevels = 5
      default: throw Refusal(0x5b, silent: silent)
      }
      path.supervisor = own == nil && options.nested && bits(context.high, 20, 20) == 1
      if path.supervisor && bits(words[2], 0, 0) == 0 { throw Refusal(0x5d, silent: silent) }
      path.firstRoot = page(words[2])
      path.writeProtect = bits(words[2], 4, 4) == 1
      path.extendedAccessed = bits(words[2], 7, 7) == 1
    }
    return path
  }

  private func isWrong(_ words: [UInt64]) -> Bool {
    let nestedType = bits(words[0], 6, 8) == 3
    var wrong = bits(words[0], 5, 5) + bits(words[0], 10, 11) + bits(words[1], 16, 22) != 0
    if beyond(words[0]) || beyond(words[2]) && !nestedType { wrong = true }
    if bits(words[2], 8, 11) != 0 { wrong = true }
    // ERE and SMEP belong to execute requests, which x-nested offers together with PASIDs.
    let executes = options.nested && options.pasidBits > 0
    if !executes && bits(words[2], 1, 1) + bits(words[2], 6, 6) != 0 { wrong = true }
    // x-nested offers SSADE and EAFE; x-nested and svm offer PWSNP; supervisor requests need SRE.
    if !options.nested && bits(words[0], 9, 9) + bits(words[2], 7, 7) != 0 { wrong = true }
    if !(options.nested || options.svm) && bits(words[1], 23, 23) != 0 { wrong = true }
    if !options.offersScalableSecondStage && bits(words[2], 0, 0) != 0 { wrong = true }
    return wrong || words[3...].contains { $0 != 0 }
  }

  private func legacyPath(_ context: Context) -> Path {
    var path = Path(
      kind: bits(context.low, 2, 3) == 2 ? .passThrough : .second, domain: context.domain, pasid: 0,
      isScalable: false, silent: context.silent)
    path.secondLevels = secondStageLevels(bits(context.high, 0, 2)) ?? 0
    path.secondRoot = page(context.low)
    return path
  }

  // MARK: Pages

  /// Walks the paging tables.
  /// - Returns: the verdict before FPD, what a cache may keep, the addresses of the paging entries used, and whether
  ///   the walk sets an accessed or dirty bit.
  func walk(
    _ path: Path, _ address: UInt64, write: Bool
  ) -> (verdict: ReferenceWalker.Verdict, leaf: ReferenceWalker.Leaf?, entries: [UInt64], marks: Bool) {
    let tables: ReferenceWalker.Tables
    switch path.kind {
    case .passThrough:
      if beyond(address) { return (.fault(path.isScalable ? 0x83 : 0x04), nil, [], false) }
      return (.at(address), nil, [], false)
    case .first: tables = .first(root: path.firstRoot, levels: path.firstLevels)
    case .second: tables = .second(root: path.secondRoot, levels: path.secondLevels)
    case .nested:
      tables = .nested(first: path.firstRoot, second: path.secondRoot, secondLevels: path.secondLevels)
    }
    var walker = ReferenceWalker(memory: memory, tables: tables, hostWidth: width)
    walker.gigabyte = options.fs1gp
    walker.scalable = path.isScalable
    walker.secondStageMarks = path.marks
    walker.nestedFirstLevels = path.firstLevels
    walker.supervisor = path.supervisor
    walker.writeProtect = path.writeProtect
    walker.extendedAccessed = path.extendedAccessed
    walker.snooped = path.snooped
    walker.snoopBit = options.scalableMode || options.snoopControl
    walker.ignoresTransient = options.ignoresTransientMapping
    let verdict = walker.verdict(address, write: write)
    if case .fault = verdict { return (verdict, nil, walker.visited, false) }
    return (verdict, walker.leaf, walker.visited, !walker.marked.isEmpty)
  }
}
