import Hardware
import Machine
import VTd

/// `info iommu translate DEVICE[:PASID] ADDRESS [read|write]`: shows how a unit translates one request, entry by entry.
public enum TranslationText {
  public static let usage = "info iommu translate DEVICE[:PASID] ADDRESS [read|write]"

  /// Carries out the command.
  /// - Parameter arguments: The words after `translate`.
  /// - Returns: The text, or one line without a newline that explains the error in the arguments.
  public static func answer(_ arguments: [String], _ units: RemappingInspection) -> Result<String, Mistake> {
    guard (2...3).contains(arguments.count) else { return .failure(Mistake("usage: \(usage)")) }
    let access: DMAAccess
    switch arguments.count == 3 ? arguments[2] : "read" {
    case "read": access = .read
    case "write": access = .write
    default: return .failure(Mistake("the access must be read or write, not \(ErrorText.quoted(arguments[2]))"))
    }
    guard let address = NumberText.unsigned(arguments[1].utf8) else {
      return .failure(
        Mistake("\(ErrorText.quoted(arguments[1])) is not an address: a number (decimal, or hexadecimal with 0x)"))
    }
    do {
      return .success(text(try report(arguments[0], address, access, units)))
    } catch {
      return .failure(error)
    }
  }

  /// An error in the arguments.
  public struct Mistake: Error, Hashable, Sendable {
    public let line: String
    init(_ line: String) { self.line = line }
  }

  private static func report(
    _ device: String, _ address: UInt64, _ access: DMAAccess, _ units: RemappingInspection
  ) throws(Mistake) -> TranslationReport {
    do throws(RemappingInspection.Problem) {
      return try units.translation(of: device, pasid: nil, address: address, access: access)
    } catch {
      // Try `DEVICE:PASID` second, because a PCI address with a bus number looks the same.
      if case .unknownDevice = error, let colon = device.lastIndex(of: ":") {
        let digits = device[device.index(after: colon)...]
        guard let pasid = NumberText.unsigned(digits.utf8), pasid <= 0xf_ffff else {
          throw Mistake("\(ErrorText.quoted(String(digits))) is not a PASID: a number below 2^20")
        }
        do throws(RemappingInspection.Problem) {
          return try units.translation(
            of: String(device[..<colon]), pasid: UInt32(pasid), address: address, access: access)
        } catch { throw mistake(error) }
      }
      throw mistake(error)
    }
  }

  private static func mistake(_ problem: RemappingInspection.Problem) -> Mistake {
    switch problem {
    case .noUnit: Mistake("there is no IOMMU")
    case .unknownDevice(let name, let known):
      Mistake("no device \(ErrorText.quoted(name))" + ErrorText.nearest(name, known))
    case .notRemapped(let source): Mistake("no IOMMU translates for \(source)")
    }
  }

  // MARK: The report

  static func text(_ report: TranslationReport) -> String {
    let explanation = report.explanation
    let name = RemappingText.name(of: report.function)
    var text = "\(report.source)\(name.isEmpty ? "" : " " + name)"
    if let pasid = explanation.pasid { text += ", PASID \(pasid)" }
    text += ": \(explanation.access.contains(.write) ? "write" : "read") "
    text += "\(NumberFormat.hexadecimal(explanation.address)), by \(report.unitName)\n"

    var columns = Columns(indent: 2)
    for entry in explanation.entries {
      columns.add(
        title(entry.kind), NumberFormat.hexadecimal(entry.address), SourceTablesText.words(entry),
        entry.isPresent ? SourceTablesText.fields(entry) : entry.words == nil ? "" : "not present")
    }
    text += columns.text
    if let roots = explanation.roots { text += "  \(SourceTablesText.roots(roots))\n" }
    var steps = Columns(indent: 2)
    for step in explanation.steps { add(step, to: &steps) }
    for step in explanation.stepsBelow { add(step, to: &steps) }
    text += steps.text
    text += "  = \(result(explanation))\n"
    for page in explanation.cached {
      text +=
        "  cached: \(NumberFormat.hexadecimal(page.output | explanation.address & (page.size - 1))), page of "
        + "\(NumberFormat.pageSize(page.size)), \(RemappingText.rights(page.readable, page.writable)), domain \(page.domain)"
        + "\(agrees(page, explanation) ? "" : "; the tables say otherwise: an invalidation is missing")\n"
    }
    return text
  }

  /// Returns whether a cached page translates the address as the tables do.
  private static func agrees(_ page: CachedPage, _ explanation: TranslationExplanation) -> Bool {
    guard case .page(let output, _, _, _) = explanation.result else {
      // The tables refuse the request. The cached page agrees if it does not grant the access either.
      let granted = explanation.access.contains(.write) ? page.writable : page.readable
      return !granted
    }
    return output == page.output | explanation.address & (page.size - 1)
  }

  private static func title(_ kind: StructureEntry.Kind) -> String {
    switch kind {
    case .root: "root entry"
    case .scalableRoot: "scalable root entry"
    case .context: "context entry"
    case .scalableContext: "scalable context entry"
    case .pasidDirectory: "PASID-directory entry"
    case .pasid: "PASID-table entry"
    }
  }

  private static func add(_ step: PagingStep, to columns: inout Columns, indent: String = "") {
    // The unit translates a first-stage entry's address by the second stage before it reads the entry.
    for inner in step.below { add(inner, to: &columns, indent: indent + "  ") }
    let stage = step.stage == .first ? "first" : "second"
    columns.add(
      "\(indent)\(stage) stage level \(step.level) [\(step.index)]", place(step),
      step.entry.map(NumberFormat.entry) ?? "", meaning(step))
    if let last = step.belowUpdate.last, !last.isLeaf || !last.flags.contains("W") {
      for inner in step.belowUpdate { add(inner, to: &columns, indent: indent + "  to set bits: ") }
    }
  }

  private static func place(_ step: PagingStep) -> String {
    guard let physical = step.physicalAddress, physical != step.address else {
      return NumberFormat.hexadecimal(step.address)
    }
    return "\(NumberFormat.hexadecimal(step.address)) at \(NumberFormat.hexadecimal(physical))"
  }

  private static func meaning(_ step: PagingStep) -> String {
    guard step.entry != nil else { return step.physicalAddress == nil ? "unreachable" : "not in RAM" }
    guard step.isPresent, let output = step.output else { return "not present" }
    var words = step.flags.joined(separator: " ")
    if step.reservedBits != 0 { words += ", reserved bits \(NumberFormat.hexadecimal(step.reservedBits)) are set" }
    words += step.isLeaf ? " -> page \(NumberFormat.hexadecimal(output))" : " -> \(NumberFormat.hexadecimal(output))"
    if step.bitsToSet != 0 { words += ", a request sets " + step.marks.joined(separator: " ") }
    return words
  }

  private static func result(_ explanation: TranslationExplanation) -> String {
    let address = NumberFormat.hexadecimal(explanation.address)
    switch explanation.result {
    case .untranslated: return "\(address): translation is off"
    case .interruptRequest: return "\(address): an interrupt request, which is not translated"
    case .passThrough: return "\(address), passed through"
    case .page(let output, let size, let readable, let writable):
      return "\(NumberFormat.hexadecimal(output)), page of \(NumberFormat.pageSize(size)), to be cached as "
        + RemappingText.rights(readable, writable)
    case .fault(let reason, let isRecorded):
      return FaultText.line(reason) + (isRecorded ? "" : "; not recorded (FPD)")
    }
  }
}
