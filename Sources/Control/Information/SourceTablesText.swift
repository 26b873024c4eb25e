import Hardware
import Machine
import Passthrough
import VTd

/// Describes the entries that lead from the root table to a device's paging tables.
enum SourceTablesText {
  static func source(_ source: SourceTables, name: String) -> String {
    var text = "  \(source.source)\(name.isEmpty ? "" : " " + name)\n"
    guard source.root.isPresent, let context = source.context, context.isPresent else {
      return text + "    " + outcome(source.outcome) + "\n"
    }
    var columns = Columns(indent: 4)
    columns.add(row("root", source.root))
    columns.add(row("context", context))
    text += columns.text
    if source.outcome != nil { text += "    -> \(outcome(source.outcome))\n" }
    for pasid in source.pasids {
      text += "    PASID \(pasid.number)\(pasid.isForRequestsWithout ? ", of requests without PASID" : "")\n"
      var columns = Columns(indent: 6)
      columns.add(row("directory", pasid.directory))
      columns.add(row("entry", pasid.entry))
      text += columns.text + "      -> \(outcome(pasid.outcome))\n"
    }
    if source.isCut { text += "    and more PASIDs\n" }
    return text
  }

  private static func row(_ title: String, _ entry: StructureEntry) -> [String] {
    [title, NumberFormat.hexadecimal(entry.address), words(entry), fields(entry)]
  }

  /// Returns the words of an entry, the highest first, as in Linux's debugfs. Omits upper words that are zero.
  static func words(_ entry: StructureEntry) -> String {
    guard var words = entry.words else { return "not in RAM" }
    while words.count > 1, words.last == 0 { words.removeLast() }
    let parts = words.reversed().map { NumberFormat.entry($0).dropFirst(2) }
    return "0x" + parts.joined(separator: ":")
  }

  /// Returns the flags that are set, and all other fields.
  static func fields(_ entry: StructureEntry) -> String {
    entry.fields.compactMap { field in
      switch field.value {
      case .flag(let isSet): isSet ? field.name : nil
      case .number(let value): "\(field.name)=\(value)"
      case .choice(let value, let name): "\(field.name)=\(value) (\(name))"
      case .address(let address): "\(field.name)=\(NumberFormat.hexadecimal(address))"
      }
    }.joined(separator: " ")
  }

  static func outcome(_ outcome: TableOutcome?) -> String {
    switch outcome {
    case .roots(let roots): self.roots(roots)
    case .fault(let reason): FaultText.line(reason)
    case nil: ""
    }
  }

  static func roots(_ roots: TableRoots) -> String {
    func table(_ root: TableRoots.Root) -> String {
      "\(root.levels) levels at \(NumberFormat.hexadecimal(root.address))"
    }
    let domain = "domain \(roots.domain), "
    switch (roots.firstStage, roots.secondStage) {
    case (let first?, let second?): return domain + "nested: first stage \(table(first)), second stage \(table(second))"
    case (let first?, nil): return domain + "first stage, \(table(first))"
    case (nil, let second?): return domain + "second stage, \(table(second))"
    case (nil, nil): return domain + "pass-through"
    }
  }
}

/// Describes which host page tables translate for a passed-through function.
enum HostAttachmentText {
  /// The most PASIDs of a function that are listed.
  private static let mostPASIDs = 64

  /// Returns a line for requests without PASID, and one for each PASID.
  static func lines(_ attachment: HostAttachment) -> [String] {
    let shown = attachment.pasids.prefix(mostPASIDs)
    let rest = attachment.pasids.count - shown.count
    return ["on the host: \(line(attachment))"]
      + shown.map { pasid in
        "on the host, PASID \(pasid.number): \(line(pasid.target, pasid.binding, attachment.iommufd))"
      } + (rest > 0 ? ["on the host: and \(rest) more PASIDs"] : [])
  }

  /// Returns the text for requests without PASID.
  static func line(_ attachment: HostAttachment) -> String {
    line(attachment.target, attachment.binding, attachment.iommufd)
  }

  private static func line(
    _ target: HostAttachment.Target, _ binding: HostBinding?, _ iommufd: String?
  ) -> String {
    let owner = iommufd.map { ", \($0)" } ?? ""
    func space(_ id: UInt32?) -> String { (id.map { " over IOAS \($0)" } ?? "") + owner }
    switch target {
    case .none: return "nothing: \(reason(binding))"
    case .addressSpace(let id): return "the page table of IOAS \(id)\(owner)"
    case .parent(let id, let under): return "second stage, HWPT \(id)\(space(under))"
    case .nested(let id, let parent, let under):
      var stage = ""
      if case .firstStage(let table) = binding {
        stage = ", \(table.levels) levels at \(NumberFormat.hexadecimal(table.root))"
      }
      return "nested, HWPT \(id)\(stage), on second stage, HWPT \(parent)\(space(under))"
    }
  }

  private static func reason(_ binding: HostBinding?) -> String {
    guard case .blocked(let reason) = binding else { return "its requests are refused" }
    switch reason {
    case .entry(let fault): return FaultText.line(fault)
    case .guestSecondStage: return "the guest uses second-stage tables"
    case .supervisorRequests: return "the guest asks for supervisor requests"
    case .tooManyPASIDs: return "the guest uses too many PASIDs"
    case .refused: return "the host refused the guest's tables"
    }
  }
}
