import Hardware
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
