import Hardware
import Machine
import VTd

/// `info iommu`, `x-query-iommu` and `-d iommu`: the state of the remapping units, for debugging drivers.
public enum RemappingText {
  /// The most rows that each list of a unit's cached items shows.
  static let listLimit = 48

  /// Describes every unit: its registers, each device's entries in the tables in memory, its caches and its counters.
  public static func units(_ states: [RemappingUnitState]) -> String {
    states.isEmpty ? "There is no IOMMU.\n" : states.map { unit($0, isOnly: states.count == 1) }.joined(separator: "\n")
  }

  /// Returns one line for each counter of each unit, for `-d iommu`.
  static func log(of units: [PlacedUnit]) -> String {
    units.map { unit in
      let prefix = units.count == 1 ? "iommu" : "iommu \(unit.name)"
      return named(unit.counters, unit).map { "\(prefix): \($0.name): \($0.value)\n" }.joined()
    }.joined()
  }

  /// Returns a unit's counters, and those of its calls to the host's kernel if it has had passed-through functions.
  private static func named(_ counters: TranslationCounters, _ unit: PlacedUnit) -> [(name: String, value: UInt64)] {
    counters.named + (unit.hostCounters?.named ?? [])
  }

  private static func unit(_ state: RemappingUnitState, isOnly: Bool) -> String {
    let snapshot = state.snapshot
    var text =
      "\(state.unit.name): registers at \(NumberFormat.hexadecimal(state.unit.placement.registerBase)), \(scope(state.unit, isOnly: isOnly))\n"
    text += summary(snapshot)
    for source in snapshot.sources {
      let function = state.functions.first { $0.address == source.source }
      text += "\n" + SourceTablesText.source(source, name: name(of: function))
      for attachment in state.attachments where attachment.source == source.source {
        text += HostAttachmentText.lines(attachment).map { "    \($0)\n" }.joined()
      }
    }
    if snapshot.sources.isEmpty { text += "\n  No root table is set.\n" }
    text += entries(snapshot.caches)
    text += pages(snapshot.caches)
    text += refusals(snapshot.caches)
    text += remotes(snapshot.remotes)
    text += interruptEntries(snapshot.interruptRemapping.cached)
    text += "\n  counters\n"
    var columns = Columns(indent: 4, rightAligned: [1])
    for counter in named(snapshot.counters, state.unit) where counter.value > 0 {
      columns.add(counter.name, "\(counter.value)")
    }
    if columns.isEmpty { columns.add("all are 0") }
    return text + columns.text
  }

  static func name(of function: NamedFunction?) -> String {
    guard let function else { return "" }
    return function.id.map { "\(function.typeName) '\($0)'" } ?? function.typeName
  }

  private static func scope(_ unit: PlacedUnit, isOnly: Bool) -> String {
    var parts = unit.placement.functions.map(\.description)
    if unit.placement.includesAll { parts.append(isOnly ? "all devices" : "all other devices") }
    if unit.placement.hasIOAPIC { parts.append("IOAPIC") }
    return parts.isEmpty ? "no device" : parts.joined(separator: ", ")
  }

  private static func summary(_ snapshot: UnitSnapshot) -> String {
    func register(_ name: String) -> UInt64 { snapshot.registers.first { $0.mnemonic == name }?.value ?? 0 }
    func hex(_ name: String) -> String { "\(name) \(NumberFormat.hexadecimal(register(name)))" }
    var columns = Columns(indent: 2)
    let mode =
      switch snapshot.tableMode {
      case .legacy: "legacy mode"
      case .scalable: "scalable mode"
      case .reserved: "reserved table mode"
      }
    columns.add(
      "translation",
      "\(snapshot.isTranslationEnabled ? "on" : "off"), \(mode), root table \(NumberFormat.hexadecimal(snapshot.rootTable))"
    )
    let interrupts = snapshot.interruptRemapping
    var words = [interrupts.isEnabled ? "on" : "off"]
    if interrupts.isEnabled {
      words.append(interrupts.isExtended ? "32-bit destinations" : "8-bit destinations")
      if interrupts.allowsCompatibilityFormat { words.append("compatibility format passes") }
      words.append("table \(NumberFormat.hexadecimal(interrupts.table)) of \(interrupts.entries) entries")
    }
    columns.add("interrupt remapping", words.joined(separator: ", "))
    let queue = snapshot.queue
    columns.add(
      "invalidation queue",
      queue.isEnabled
        ? "on, \(NumberFormat.hexadecimal(queue.base)), \(NumberFormat.pageSize(UInt64(clamping: queue.size))) of "
          + "\(queue.isWide ? 256 : 128)-bit descriptors, head \(NumberFormat.hexadecimal(queue.head)), "
          + "tail \(NumberFormat.hexadecimal(queue.tail))"
        : "off")
    columns.add(
      "registers", ["CAP", "ECAP", "GSTS", "FSTS", "FECTL", "ICS", "IQERCD"].map(hex).joined(separator: ", "))
    if let fault = fault(low: register("FRCD0.lo"), high: register("FRCD0.hi")) {
      columns.add("recorded fault", fault)
    }
    return columns.text
  }

  /// Decodes a fault recording register (VT-d 11.4.7.5).
  private static func fault(low: UInt64, high: UInt64) -> String? {
    guard high[bit: 63] else { return nil }
    let reason = UInt8(truncatingIfNeeded: high >> 32)
    let source = RequesterID(rawValue: UInt16(truncatingIfNeeded: high))
    let pasid = high[bit: 31] ? ", PASID \(high[bits: 40...59])" : ""
    return "\(source)\(pasid) \(high[bit: 62] ? "read" : "write") \(NumberFormat.hexadecimal(low)): "
      + (FaultReason(rawValue: reason).map(FaultText.line) ?? "fault \(NumberFormat.hexadecimal(reason))")
  }

  // MARK: Caches

  private static func entries(_ caches: [PortCache]) -> String {
    let filled = caches.filter { $0.hasContext || $0.roots != nil }
    if filled.isEmpty { return "\n  cached entries: none\n" }
    var columns = Columns(indent: 4)
    for cache in filled.prefix(listLimit) {
      var parts = cache.hasContext ? ["context"] : []
      if let roots = cache.roots {
        let entry = cache.hasContext ? "PASID \(cache.pasid)" : "context"
        parts.append("\(entry) -> \(SourceTablesText.roots(roots))")
      }
      columns.add(
        cache.source.description, cache.requestPASID.map { "with PASID \($0)" } ?? "without PASID",
        parts.joined(separator: ", "))
    }
    var text = "\n  cached context and PASID-table entries, by kind of request\n" + columns.text
    if filled.count > listLimit { text += "    and \(filled.count - listLimit) more\n" }
    return text
  }

  private static func pages(_ caches: [PortCache]) -> String {
    var columns = Columns(indent: 4, rightAligned: [1, 2, 6])
    var count = 0
    for cache in caches {
      for page in cache.pages {
        count += 1
        if count == 1 { columns.add("source", "PASID", "domain", "stage", "address", "goes to", "size", "rights") }
        guard count <= listLimit else { continue }
        let stages =
          switch page.stages {
          case .first: "first"
          case .second: "second"
          case .both: "nested"
          }
        columns.add(
          cache.source.description, "\(page.pasid)", "\(page.domain)", stages, NumberFormat.entry(page.input),
          NumberFormat.entry(page.output), NumberFormat.pageSize(page.size), rights(page.readable, page.writable))
      }
    }
    var text = "\n  cached pages\(count == 0 ? ": none" : "")\n"
    text += columns.text
    if count > listLimit { text += "    and \(count - listLimit) more\n" }
    return text
  }

  /// Lists cached faults of entries that are not present. They exist only in caching mode.
  private static func refusals(_ caches: [PortCache]) -> String {
    var columns = Columns(indent: 4)
    var count = 0
    for cache in caches {
      for refusal in cache.refusals {
        count += 1
        guard count <= listLimit else { continue }
        let place =
          switch refusal.place {
          case .context: "context"
          case .pasid(let pasid): "PASID \(pasid)"
          case .page(let page, let domain, let write):
            "\(write ? "write" : "read") \(NumberFormat.entry(page)), domain \(domain)"
          }
        columns.add(cache.source.description, place, FaultText.line(refusal.reason))
      }
    }
    if count == 0 { return "" }
    return "\n  cached refusals\n" + columns.text + (count > listLimit ? "    and \(count - listLimit) more\n" : "")
  }

  /// Lists the caches of datapaths outside of this process, such as vhost-net's.
  private static func remotes(_ remotes: [RemoteCache]) -> String {
    if remotes.isEmpty { return "" }
    var columns = Columns(indent: 4, rightAligned: [1, 2, 3])
    columns.add("source", "misses", "mappings", "invalidations", "may hold")
    for remote in remotes.prefix(listLimit) {
      let contents =
        switch remote.contents {
        case .empty: "nothing"
        case .untranslated: "untranslated addresses"
        case .domain(let domain, let pasid, let isPassThrough):
          isPassThrough ? "pass-through, domain \(domain)" : "pages of domain \(domain), PASID \(pasid)"
        case .mixed: "pages of several domains"
        }
      columns.add(
        remote.source.description, "\(remote.misses)", "\(remote.mappings)", "\(remote.invalidations)", contents)
    }
    let text = "\n  remote IOTLBs, in another process or the kernel\n" + columns.text
    return remotes.count > listLimit ? text + "    and \(remotes.count - listLimit) more\n" : text
  }

  static func rights(_ readable: Bool, _ writable: Bool) -> String { (readable ? "r" : "-") + (writable ? "w" : "-") }

  private static func interruptEntries(_ entries: [CachedInterruptEntry]) -> String {
    if entries.isEmpty { return "\n  cached interrupt entries: none\n" }
    var columns = Columns(indent: 4, rightAligned: [0])
    columns.add("index", "entry", "vector", "destination", "trigger", "from")
    for entry in entries.prefix(listLimit) {
      let source = RequesterID(rawValue: UInt16(truncatingIfNeeded: entry.high))
      columns.add(
        "\(entry.index)", "\(NumberFormat.entry(entry.high)):\(NumberFormat.entry(entry.low).dropFirst(2))",
        NumberFormat.hexadecimal(entry.low[bits: 16...23]), NumberFormat.hexadecimal(entry.low >> 32),
        entry.low[bit: 4] ? "level" : "edge", entry.high[bits: 18...19] == 0 ? "any" : source.description)
    }
    var text = "\n  cached interrupt entries\n" + columns.text
    if entries.count > listLimit { text += "    and \(entries.count - listLimit) more\n" }
    return text
  }
}
