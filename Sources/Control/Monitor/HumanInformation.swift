import Machine
import PCI

/// The subjects of `info` in HMP. Subjects that QEMU also has use QEMU's layout.
extension HumanCommands {
  private struct Subject: Sendable {
    let name: String
    var parameters = ""
    let help: String
    let text: @Sendable (_ words: [String], any MonitorTarget) -> String
  }

  private static let subjects: [Subject] = [
    Subject(name: "block", parameters: "[-n] [device]", help: "show info of one block device or all block devices") {
      (words, target) in BlockText.text(words, target.blockNodes)
    },
    Subject(name: "chardev", help: "show the character devices") { (_, target) in
      target.chardevs.map { "\($0.id): filename=\($0.name)\n" }.joined()
    },
    Subject(name: "cpus", help: "show infos for each CPU") { (_, target) in
      let threads = target.processorThreads
      return (0..<target.configuration.processors.count).map { index in
        "\(index == 0 ? "*" : " ") CPU #\(index):"
          + (index < threads.count ? " thread_id=\(threads[index])" : "") + "\n"
      }.joined()
    },
    Subject(name: "exits", help: "show how long exits have kept each CPU out of the guest") { (_, target) in
      ExitText.text(target.exitSummaries)
    },
    Subject(
      name: "iommu", parameters: "[translate DEVICE[:PASID] ADDRESS [read|write]]",
      help: "show the IOMMUs: tables, caches, counters; or how they translate one address"
    ) { (words, target) in
      guard let word = words.first else { return target.remappingText() }
      guard word == "translate" else { return "info iommu: unknown word \(ErrorText.quoted(word))\n" }
      return target.translationText(Array(words.dropFirst()))
    },
    Subject(name: "kvm", help: "show KVM information") { (_, target) in
      if case .kvm = target.configuration.accelerator { "kvm support: enabled\n" } else { "kvm support: disabled\n" }
    },
    Subject(name: "memdev", help: "show memory backends") { (_, target) in
      MemoryBackend(of: target.configuration).text
    },
    Subject(name: "mtree", help: "show memory tree") { (_, target) in AddressSpaceText.text(target.addressSpaces) },
    Subject(name: "name", help: "show the current VM name") { (_, target) in
      target.configuration.name.map { $0 + "\n" } ?? ""
    },
    Subject(name: "network", help: "show the network state") { (_, target) in
      NetworkText.text(target.networkCards, free: target.freeNetdevs)
    },
    Subject(name: "pci", help: "show PCI info") { (_, target) in target.functions.map(text).joined() },
    Subject(name: "qom-tree", parameters: "[path]", help: "show QOM composition tree") { (words, target) in
      ObjectTree(target).text(from: words.first ?? "/machine")
    },
    Subject(name: "qtree", help: "show device tree") { (_, target) in DeviceTreeText.text(target.devices) },
    Subject(name: "status", help: "show the current VM status") { (_, target) in
      switch target.control.status {
      case .running: "VM status: running\n"
      case .paused: "VM status: paused\n"
      case let status: "VM status: paused (\(status.text))\n"
      }
    },
    Subject(name: "version", help: "show the version of Nestling") { (_, _) in
      let level = MonitorVersion.level
      return "nestling-\(HelpText.versionNumber) (commands as of QEMU \(level.major).\(level.minor).\(level.micro))\n"
    },
  ]

  static var infoHelp: String { subjects.map { line("info \($0.name)", $0.parameters, $0.help) }.joined() }

  static func info(_ words: [String], _ target: any MonitorTarget) -> String {
    guard let name = words.first else { return infoHelp }
    guard let subject = subjects.first(where: { $0.name == name }) else {
      return "unknown command: \(ErrorText.quoted("info " + name))\n"
    }
    return subject.text(Array(words.dropFirst()), target)
  }

  private static func text(_ function: MachineInspection.Function) -> String {
    let description = function.description
    let address = function.address
    let className =
      PCIClassName.of(description.classCode) ?? "Class " + NumberFormat.digits(description.classCode >> 8, 4)
    var text = "  Bus \(column(address.bus, 2)), device \(column(address.device, 3)), function \(address.function):\n"
    text += "    \(className): PCI device \(NumberFormat.digits(description.vendorID, 4)):"
    text += NumberFormat.digits(description.deviceID, 4) + "\n"
    if description.subsystemVendorID != 0 {
      text += "      PCI subsystem \(NumberFormat.digits(description.subsystemVendorID, 4)):"
      text += NumberFormat.digits(description.subsystemID, 4) + "\n"
    }
    if description.interruptPin > 0 {
      let pin = String(UnicodeScalar(UInt8(ascii: "A") &+ (description.interruptPin - 1) & 3))
      text += "      IRQ \(function.interruptLine), pin \(pin)\n"
    }
    if let bridge = function.bridge { text += self.text(bridge.header) }
    for region in function.regions {
      let register = region.register
      let last = "0x" + NumberFormat.digits(region.address &+ (register.size &- 1), register.space == .io ? 4 : 8)
      let base = "0x" + NumberFormat.digits(region.address, register.space == .io ? 4 : 8)
      text += "      BAR\(register.index): "
      switch register.space {
      case .io: text += "I/O at \(base) [\(last)].\n"
      case .memory32, .expansionROM:
        text += "32 bit\(register.prefetchable ? " prefetchable" : "") memory at \(base) [\(last)].\n"
      case .memory64: text += "64 bit\(register.prefetchable ? " prefetchable" : "") memory at \(base) [\(last)].\n"
      }
    }
    text += "      id \"\(function.id ?? "")\"\n"
    return text + (function.bridge?.functions.map(self.text).joined() ?? "")
  }

  private static func text(_ header: BridgeHeader) -> String {
    func range(_ window: BridgeHeader.Window, _ digits: Int) -> String {
      "[0x\(NumberFormat.digits(window.base, digits)), 0x\(NumberFormat.digits(window.limit, digits))].\n"
    }
    return "      BUS \(header.primaryBus).\n      secondary bus \(header.secondaryBus).\n"
      + "      subordinate bus \(header.subordinateBus).\n"
      + "      IO range " + range(header.io, 4) + "      memory range " + range(header.memory, 8)
      + "      prefetchable memory range " + range(header.prefetchable, 8)
  }

  private static func column(_ value: UInt8, _ width: Int) -> String {
    let text = String(value)
    return String(repeating: " ", count: max(0, width - text.count)) + text
  }
}

/// `info exits`: one line for each CPU.
enum ExitText {
  /// - Parameter summaries: One per CPU; empty while exits are not measured.
  static func text(_ summaries: [ExitSummary]) -> String {
    if summaries.isEmpty { return "exit times: off (exit_times on starts measuring)\n" }
    return summaries.enumerated().map { index, summary in
      let mean = summary.count == 0 ? 0 : summary.total / summary.count
      return "CPU #\(index): exits=\(summary.count) mean_ns=\(mean) longest_ns=\(summary.longest.time) "
        + "(\(text(summary.longest.cause))) undisturbed_ns=\(summary.longestUndisturbed.time) "
        + "(\(text(summary.longestUndisturbed.cause)))\n"
    }.joined()
  }

  private static func text(_ cause: ExitSummary.Cause?) -> String {
    func action(_ written: UInt64?) -> String { written.map { "write \(NumberFormat.hexadecimal($0))" } ?? "read" }
    return switch cause {
    case nil: ""
    case .port(let port, let written): "port \(NumberFormat.hexadecimal(port)) \(action(written))"
    case .memory(let address, let written): "memory \(NumberFormat.hexadecimal(address)) \(action(written))"
    case .endOfInterrupt(let vector): "end of interrupt \(NumberFormat.hexadecimal(vector))"
    case .halt: "halt"
    case .signal: "signal"
    case .other: "other"
    }
  }
}
