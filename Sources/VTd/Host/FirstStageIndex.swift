import Hardware

/// A first stage of the guest, and the host's table for it.
struct BoundTable {
  let stage: GuestFirstStage
  let host: any HostFirstStage
}

/// The host's tables in use, by the domains, PASIDs and functions that use them. It distributes a batch of invalidations
/// (VT-d 6.5.2.3 to 6.5.2.6) to the tables that each one concerns, with one list for each table.
///
/// The work for a batch is proportional to its invalidations and to the tables, not to their product: a guest chooses
/// both numbers. So an invalidation of a PASID or a page finds its tables by their key, and those of a domain or of
/// everything count once.
struct FirstStageIndex {
  private struct Key: Hashable {
    let domain: UInt16
    let pasid: UInt32
  }
  /// The tables of one function, as indices of `tables`.
  private struct FunctionTables {
    var withoutPASID: Int?
    var byPASID: [UInt32: [Int]] = [:]
    var all: [Int] = []
  }
  /// The invalidations of one table.
  private struct Batch {
    var list: [FirstStageInvalidation] = []
    var isAll = false

    mutating func append(_ next: FirstStageInvalidation) {
      guard !isAll else { return }
      if next == .all || list.count == HostBindings.mostInvalidations { isAll = true } else { list.append(next) }
    }

    /// With each invalidation, the host also flushes the device TLBs of the table's users. Software must invalidate the
    /// IOTLB before a device TLB, so a device-TLB invalidation is redundant if an earlier invalidation covers it. Other
    /// device-TLB invalidations are passed like IOTLB invalidations. Only the last ones are compared, to limit the work.
    mutating func appendDeviceTLB(_ pages: PageRange) {
      let next = FirstStageInvalidation(pages, leafOnly: true)
      if !list.suffix(32).contains(where: { $0.covers(next) }) { append(next) }
    }
  }

  /// Each table once.
  private(set) var tables: [BoundTable] = []
  private var indices: [ObjectIdentifier: Int] = [:]
  private var ofPASID: [Key: [Int]] = [:]
  private var ofDomain: [UInt16: [Int]] = [:]
  private var functions: [FunctionTables] = []

  /// Adds the next function, which has no table yet.
  mutating func appendFunction() { functions.append(FunctionTables()) }

  /// Adds a table of the last function.
  /// - Parameter pasid: the PASID of the requests that use the table; nil for requests without PASID.
  mutating func append(_ table: BoundTable, pasid: UInt32?) {
    let identifier = ObjectIdentifier(table.host)
    let index = indices[identifier] ?? tables.count
    if index == tables.count {
      tables.append(table)
      indices[identifier] = index
      ofPASID[Key(domain: table.stage.domain, pasid: table.stage.pasid), default: []].append(index)
      ofDomain[table.stage.domain, default: []].append(index)
    }
    guard var function = functions.popLast() else { return }
    if pasid == nil { function.withoutPASID = index }
    // Requests without PASID use the entry of RID_PASID, and device-TLB invalidations of that PASID concern them.
    if function.byPASID[table.stage.pasid]?.contains(index) != true {
      function.byPASID[table.stage.pasid, default: []].append(index)
      function.all.append(index)
    }
    functions.append(function)
  }

  /// Returns the invalidations to pass to the host, with the table of each list.
  /// - Parameter sources: the source-ids of the functions, in their order.
  func distribute(
    _ invalidations: [Invalidation], sources: [RequesterID]
  ) -> [(table: BoundTable, invalidations: [FirstStageInvalidation])] {
    var batches: [Int: Batch] = [:]
    var isAll = false
    var domains: Set<UInt16> = []
    var globals: [RequesterID: Int] = [:]
    func invalidateAll(_ indices: [Int]) {
      for index in indices { batches[index, default: Batch()].append(.all) }
    }
    for invalidation in invalidations {
      switch invalidation {
      case .allTranslations:
        if !isAll { invalidateAll(Array(tables.indices)) }
        isAll = true
      case .translationsOfDomain(let domain), .pagesOfDomain(let domain, _, _):
        if domains.insert(domain).inserted { invalidateAll(ofDomain[domain] ?? []) }
      case .translationsOfPASID(let pasid, let domain):
        invalidateAll(ofPASID[Key(domain: domain, pasid: pasid)] ?? [])
      case .pagesOfPASID(let pasid, let domain, let pages, let leafOnly):
        for index in ofPASID[Key(domain: domain, pasid: pasid)] ?? [] {
          batches[index, default: Batch()].append(FirstStageInvalidation(pages, leafOnly: leafOnly))
        }
      case .deviceTLB(let source, let pages):
        for (function, own) in zip(functions, sources) where own == source {
          if let index = function.withoutPASID { batches[index, default: Batch()].appendDeviceTLB(pages) }
        }
      case .deviceTLBOfPASID(let source, let pasid, let pages):
        if pasid == nil {
          // It concerns every table of the function. From the second one on, all mappings stand for all of them.
          let count = globals[source, default: 0]
          guard count < 2 else { continue }
          globals[source] = count + 1
          if count == 1 {
            for (function, own) in zip(functions, sources) where own == source { invalidateAll(function.all) }
            continue
          }
        }
        for (function, own) in zip(functions, sources) where own == source {
          for index in pasid.map({ function.byPASID[$0] ?? [] }) ?? function.all {
            batches[index, default: Batch()].appendDeviceTLB(pages)
          }
        }
      default: break
      }
    }
    return batches.sorted { $0.key < $1.key }.map { index, batch in
      (tables[index], batch.isAll ? [.all] : batch.list)
    }
  }
}
