import Hardware
import VTd

/// A remote IOTLB in a sequence of steps. The remote answers accesses from the mappings that it keeps. Each mapping
/// must be exactly what the current tables give, and as long as the remote holds it, one that a cache may hold.
struct SequenceRemote {
  let remote: KeepingRemote
  private var model: CacheModel
  private let source: UInt16

  init(_ guest: Guest, _ source: UInt16, asksAgainToWrite: Bool, isScalable: Bool) {
    self.source = source
    remote = guest.remote(RequesterID(rawValue: source), asksAgainToWrite: asksAgainToWrite)
    // A remote keeps no refusals.
    model = CacheModel(source: source, pasid: nil, isScalable: isScalable, cachingMode: false)
  }

  mutating func invalidate(_ invalidation: Invalidation) { model.invalidate(invalidation) }
  mutating func forgetAll() { model.forgetAll() }

  /// Makes an access.
  /// - Returns: what is wrong, or nil.
  mutating func access(
    _ address: UInt64, write: Bool, _ tables: ReferenceTables, isEnabled: Bool, _ guest: Guest
  ) -> String? {
    let text = "\(write ? "write" : "read") 0x\(hex(address)) by the remote of 0x\(hex(UInt64(source)))"
    if address >> 20 == 0xfee {
      return remote.answer(address, write ? .write : .read) == .refused(.notMemory) ? nil : "\(text) has a mapping"
    }
    let isHit = remote.hit(address, write ? .write : .read) != nil
    var expected: Set<ReferenceWalker.Verdict> = [.at(address)]
    if isEnabled {
      let (all, now) = model.answers(address, write: write, tables)
      // A miss reads the tables now.
      expected = isHit ? all : [now]
    }
    let count = remote.held.count
    let actual: ReferenceWalker.Verdict =
      switch remote.answer(address, write ? .write : .read) {
      case .at(let output, _): .at(output)
      case .refused: .fault(guest.takeFault()?.reason ?? 0)
      }
    if !expected.contains(actual) { return "\(text): the unit says \(actual), not one of \(expected)" }
    guard !isHit, isEnabled, remote.held.count > count, let mapping = remote.held.last else { return nil }
    return keep(mapping, of: address, tables).map { "\(text): \($0)" }
  }

  /// The pages of a mapping that the tables' leaves make: one for a large page.
  private func pages(_ mapping: RemoteMapping) -> [UInt64] {
    let size = mapping.range.last &- mapping.range.first
    if size >= 64 << 12 { return [mapping.range.first] }
    return Array(stride(from: 0, through: size, by: 0x1000)).map { mapping.range.first &+ $0 }
  }

  /// Checks a new mapping against the tables, and adds its pages to the model.
  private mutating func keep(_ mapping: RemoteMapping, of address: UInt64, _ tables: ReferenceTables) -> String? {
    guard let context = try? tables.context(of: source), let path = try? tables.path(context, pasid: nil) else {
      return "a mapping without a path"
    }
    if path.kind == .passThrough {
      let isExact =
        mapping.physicalAddress == mapping.range.first && mapping.isReadable && mapping.isWritable
        && !mapping.range.overlaps(DMARange(first: 0xfee0_0000, last: 0xfeef_ffff))
      return isExact ? nil : "pass-through gives \(mapping)"
    }
    for page in pages(mapping) {
      let output = mapping.physicalAddress &+ (page &- mapping.range.first)
      _ = model.answers(page, write: !mapping.isReadable, tables)
      let (verdict, leaf, _, marks) = tables.walk(path, page, write: !mapping.isReadable)
      guard verdict == .at(output), let leaf, leaf.writable == mapping.isWritable, leaf.readable == mapping.isReadable,
        !marks
      else { return "0x\(hex(page)) of \(mapping): \(verdict), \(String(describing: leaf)), marks: \(marks)" }
    }
    return nil
  }

  /// Checks each mapping that the remote holds.
  /// - Returns: what is wrong, or nil.
  func check(_ tables: ReferenceTables, isEnabled: Bool) -> String? {
    for mapping in remote.held {
      guard isEnabled else {
        if mapping.physicalAddress != mapping.range.first { return "\(mapping) is held without translation" }
        continue
      }
      // A copy, because the check is no access.
      for page in pages(mapping) {
        let output = ReferenceWalker.Verdict.at(mapping.physicalAddress &+ (page &- mapping.range.first))
        for write in [false, true] where write ? mapping.isWritable : mapping.isReadable {
          var copy = model
          let (all, _) = copy.answers(page, write: write, tables)
          if !all.contains(output) {
            return """
              the remote of 0x\(hex(UInt64(source))) still holds \(mapping): \(write ? "write" : "read") \
              0x\(hex(page)) may be \(all)
              """
          }
        }
      }
    }
    return nil
  }

  private func hex(_ value: UInt64) -> String { String(value, radix: 16) }
}
