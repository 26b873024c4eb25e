import Hardware

/// The entries that a batch of invalidations covers, so that the bindings which they define must be read again (VT-d
/// 6.5.2.1, 6.5.2.2). Built once for a batch, so that a guest with many invalidations and many PASIDs does not multiply
/// the work.
struct RereadScope {
  /// Whether the batch covers all entries of all functions.
  private var all = false
  private var devices: [(source: RequesterID, mask: FunctionMask)] = []
  private var domains: Set<UInt16> = []
  /// The PASIDs that the batch names, each with the domains that it names with them.
  private(set) var named: [UInt32: Set<UInt16>] = [:]

  init(_ invalidations: [Invalidation]) {
    for invalidation in invalidations {
      switch invalidation {
      case .translationChanged, .allContexts, .contextsOfDomain, .allPASIDs: all = true
      case .contextsOfDevice(let device, let mask): devices.append((device, mask))
      case .pasidsOfDomain(let domain): domains.insert(domain)
      case .pasid(let pasid, let domain): named[pasid, default: []].insert(domain)
      default: break
      }
    }
  }

  var isEmpty: Bool { !all && devices.isEmpty && domains.isEmpty && named.isEmpty }

  /// The part of the scope that concerns one function.
  func part(of source: RequesterID) -> Part {
    Part(scope: self, all: all || devices.contains { $0.mask.matches($0.source, source) })
  }

  struct Part {
    fileprivate let scope: RereadScope
    /// Whether all entries of the function are covered.
    fileprivate let all: Bool

    /// Whether entries may have become present that the batch does not name.
    var coversUnnamed: Bool { all || !scope.domains.isEmpty }

    /// Whether the batch covers the entries that define a binding.
    /// - Parameters:
    ///   - pasid: the number of the PASID-table entry; nil if it is not known.
    ///   - domain: DID of the entry. Nil if the entry was not present or not valid: then the batch may concern it by any
    ///     domain.
    func covers(pasid: UInt32?, domain: UInt16?) -> Bool {
      if all || !scope.domains.isEmpty && (domain == nil || scope.domains.contains(domain ?? 0)) { return true }
      guard let pasid else { return !scope.named.isEmpty }
      guard let domains = scope.named[pasid] else { return false }
      return domain == nil || domains.contains(domain ?? 0)
    }
  }
}
