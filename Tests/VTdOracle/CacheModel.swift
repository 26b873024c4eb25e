import Hardware
import VTd

/// What the caches of one port may hold (VT-d 6.2): every entry that its requests used and that no invalidation has
/// covered since. A request may be answered from any of these entries or from the current tables, and from nothing
/// else.
///
/// A unit may evict entries at any time. It is therefore no difference if the unit removes more entries than necessary.
struct CacheModel {
  typealias Verdict = ReferenceWalker.Verdict
  typealias Path = ReferenceTables.Path
  typealias Context = ReferenceTables.Context

  /// The key of a cached page.
  private struct Page: Hashable {
    var kind: Path.Kind
    var domain: UInt16
    var pasid: UInt32
    var shift: UInt64
    var first: UInt64

    var last: UInt64 { first | ((1 << shift) - 1) }
  }

  private struct Output: Hashable {
    var first: UInt64
    var readable: Bool
    var writable: Bool
  }

  /// A cached refusal of a page.
  private struct RefusedPage: Hashable {
    var page: Page
    var write: Bool
    /// The fault code, before FPD suppresses it.
    var code: UInt8
  }

  let source: UInt16
  /// The PASID of the port's requests.
  let pasid: UInt32?
  private let isScalable: Bool

  private var contexts: Set<Context> = []
  private var paths: [UInt32: Set<Path>] = [:]
  private var pages: [Page: Set<Output>] = [:]

  /// In caching mode, the unit also caches entries that are not present or malformed (6.1), with the value that FPD had
  /// then.
  private let cachingMode: Bool
  private var refusedContexts: Set<UInt8> = []
  private var refusedPASIDs: [UInt32: Set<UInt8>] = [:]
  private var refusedPages: Set<RefusedPage> = []

  init(source: UInt16, pasid: UInt32?, isScalable: Bool, cachingMode: Bool) {
    self.source = source
    self.pasid = pasid
    self.isScalable = isScalable
    self.cachingMode = cachingMode
  }

  // MARK: Requests

  /// Returns all answers that a request may get, and the current one. Adds the entries of the current tables to those
  /// that may be cached.
  mutating func answers(_ address: UInt64, write: Bool, _ tables: ReferenceTables) -> (all: Set<Verdict>, now: Verdict)
  {
    var all: Set<Verdict> = []
    let now = now(address, write: write, tables)
    if address >> 20 == 0xfee, pasid == nil { return ([now], now) }
    do {
      contexts.insert(try tables.context(of: source))
    } catch {
      all.insert(.fault(error.reason))
      if [0x02, 0x03, 0x0b, 0x41, 0x42, 0x43].contains(error.code) { refusedContexts.insert(error.reason) }
    }
    if cachingMode { all.formUnion(refusedContexts.map(Verdict.fault)) }
    for context in contexts {
      let number = tables.pasid(pasid, context)
      do {
        let path = try tables.path(context, pasid: pasid)
        paths[number, default: []].insert(path)
      } catch {
        all.insert(.fault(error.reason))
        if [0x51, 0x52, 0x59, 0x5a, 0x5b].contains(error.code) {
          refusedPASIDs[number, default: []].insert(error.reason)
        }
      }
      // Without PASIDE no cached entry is used. Legacy mode has no cached entries below the context.
      if context.isScalable {
        if pasid != nil, context.low & 8 == 0 { continue }
        for path in paths[number, default: []] { follow(path, address, write, tables, &all) }
        if cachingMode { all.formUnion(refusedPASIDs[number, default: []].map(Verdict.fault)) }
      } else if let path = try? tables.path(context, pasid: nil) {
        follow(path, address, write, tables, &all)
      }
    }
    return (all, now)
  }

  private mutating func follow(
    _ path: Path, _ address: UInt64, _ write: Bool, _ tables: ReferenceTables, _ all: inout Set<Verdict>
  ) {
    if address >> 20 == 0xfee {
      all.insert(.fault(path.silent ? 0 : 0x87))
      return
    }
    if path.kind != .passThrough {
      for shift: UInt64 in [12, 21, 30] {
        let first = (address >> shift) << shift
        let page = Page(kind: path.kind, domain: path.domain, pasid: path.pasid, shift: shift, first: first)
        for output in pages[page, default: []] where write ? output.writable : output.readable {
          all.insert(.at(output.first | (address - first)))
        }
      }
    }
    if cachingMode {
      for refused in refusedPages
      where refused.write == write && refused.page.first == (address >> 12) << 12 && refused.page.kind == path.kind
        && refused.page.domain == path.domain && refused.page.pasid == path.pasid
      {
        all.insert(Self.recorded(.fault(refused.code), path))
      }
    }
    let (verdict, leaf, _, _) = tables.walk(path, address, write: write)
    all.insert(Self.recorded(verdict, path))
    switch verdict {
    case .at(let output): if let leaf { keep(path, address, output, leaf) }
    case .fault(let code): if cachingMode { keep(code, path, address, write) }
    }
  }

  /// Returns a verdict as software sees it: FPD suppresses the reason.
  private static func recorded(_ verdict: Verdict, _ path: Path) -> Verdict {
    if case .fault = verdict, path.silent { .fault(0) } else { verdict }
  }

  /// Keeps a second-stage refusal.
  private mutating func keep(_ code: UInt8, _ path: Path, _ address: UInt64, _ write: Bool) {
    let page = Page(
      kind: path.kind, domain: path.domain, pasid: path.pasid, shift: 12, first: (address >> 12) << 12)
    let rights: Set<UInt8> = path.kind == .second ? [0x85, 0x86] : []
    if rights.union([0x05, 0x06, 0x0c, 0x75, 0x76, 0x77, 0x79, 0x7a]).contains(code) {
      refusedPages.insert(RefusedPage(page: page, write: write, code: code))
    }
  }

  private mutating func keep(_ path: Path, _ address: UInt64, _ output: UInt64, _ leaf: ReferenceWalker.Leaf) {
    // A page that overlaps the interrupt addresses is cached in 4 KiB pieces.
    func touches(_ address: UInt64, _ shift: UInt64) -> Bool {
      let first = (address >> shift) << shift
      return first <= 0xfeef_ffff && first | ((1 << shift) - 1) >= 0xfee0_0000
    }
    let shift = touches(address, leaf.shift) || touches(output, leaf.shift) ? 12 : leaf.shift
    let page = Page(
      kind: path.kind, domain: path.domain, pasid: path.pasid, shift: shift, first: (address >> shift) << shift)
    pages[page, default: []].insert(
      Output(first: (output >> shift) << shift, readable: leaf.readable, writable: leaf.writable))
  }

  /// Returns the verdict of the current tables.
  private func now(_ address: UInt64, write: Bool, _ tables: ReferenceTables) -> Verdict {
    if address >> 20 == 0xfee, pasid == nil { return .at(address) }
    do throws(ReferenceTables.Refusal) {
      let path = try tables.path(try tables.context(of: source), pasid: pasid)
      if address >> 20 == 0xfee { return .fault(path.silent ? 0 : 0x87) }
      return Self.recorded(tables.walk(path, address, write: write).verdict, path)
    } catch {
      return .fault(error.reason)
    }
  }

  // MARK: Invalidations

  mutating func forgetAll() {
    contexts = []
    paths = [:]
    pages = [:]
    refusedContexts = []
    refusedPASIDs = [:]
    refusedPages = []
  }

  /// Removes what an invalidation covers, and no more (VT-d 6.5.2, tables of each descriptor).
  mutating func invalidate(_ invalidation: Invalidation) {
    switch invalidation {
    case .allContexts: forgetContexts()
    case .contextsOfDomain(let domain):
      contexts = contexts.filter { !$0.isScalable && $0.domain != domain }
      // In legacy mode, entries that are not present belong to domain 0. The sequences never name domain 0.
      if isScalable { refusedContexts = [] }
    case .contextsOfDevice(let device, let mask):
      let ignored: UInt16 = [0, 4, 6, 7][Int(mask.rawValue)]
      if device.rawValue | ignored == source | ignored { forgetContexts() }
    case .allPASIDs:
      paths = [:]
      refusedPASIDs = [:]
    case .pasidsOfDomain(let domain):
      paths = paths.mapValues { $0.filter { $0.domain != domain } }
      refusedPASIDs = [:]
    case .pasid(let pasid, let domain):
      paths[pasid] = paths[pasid]?.filter { $0.domain != domain }
      refusedPASIDs[pasid] = nil
    case .allTranslations: forgetPages { _ in true }
    case .translationsOfDomain(let domain): forgetPages { $0.domain == domain }
    case .pagesOfDomain(let domain, let range, _):
      forgetPages { $0.domain == domain && ($0.kind != .second || Self.meet($0, range)) }
    case .translationsOfPASID(let pasid, let domain):
      forgetPages { $0.domain == domain && $0.pasid == pasid && $0.kind != .second }
    case .pagesOfPASID(let pasid, let domain, let range, _):
      forgetPages { $0.domain == domain && $0.pasid == pasid && $0.kind != .second && Self.meet($0, range) }
    default: break
    }
  }

  private mutating func forgetContexts() {
    contexts = []
    refusedContexts = []
  }

  private mutating func forgetPages(where isCovered: (Page) -> Bool) {
    pages = pages.filter { !isCovered($0.key) }
    refusedPages = refusedPages.filter { !isCovered($0.page) }
  }

  private static func meet(_ page: Page, _ range: PageRange) -> Bool {
    page.first <= range.last && range.first <= page.last
  }
}
