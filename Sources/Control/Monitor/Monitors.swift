import Machine

/// A running machine as one of its monitors sees it.
final class Monitors: MonitorTarget {
  let control: any MachineControl
  private let inspection: MachineInspection
  private let remapping: RemappingInspection
  private let machineChardevs: Chardevs
  let descriptors: MonitorDescriptors

  private init(_ machine: RunningMachine, _ sets: DescriptorSets) {
    descriptors = MonitorDescriptors(sets)
    control = machine.control
    inspection = machine.inspection
    remapping = machine.remapping
    machineChardevs = machine.chardevs
  }

  /// Attaches the monitors of the configuration. Must be called before the machine runs.
  static func attach(_ options: [MonitorOptions], to machine: RunningMachine) throws(StartError) {
    if options.isEmpty { return }
    let sets = DescriptorSets()
    var monitors: [Monitor] = []
    for options in options {
      guard let id = options.device else { continue }
      monitors.append(try Monitor(options, at: try machine.chardev(id), of: Monitors(machine, sets)))
    }
    let attached = monitors
    machine.control.addListener { notice in
      let time = HostTime.now
      for monitor in attached { monitor.notify(notice, at: time) }
    }
  }

  var configuration: MachineConfiguration { inspection.configuration }
  var functions: [MachineInspection.Function] { inspection.functions }
  var chardevs: [MachineInspection.ChardevState] { inspection.chardevs }
  var devices: [Device] { inspection.devices }
  var objects: [any ObjectOptions] { inspection.objects }
  var blockNodes: [MachineInspection.BlockState] { inspection.blockNodes }
  var freeNetdevs: [MachineInspection.NetdevState] { inspection.freeNetdevs }
  var networkCards: [MachineInspection.NetworkCard] { inspection.networkCards }
  var addressSpaces: [MachineInspection.AddressSpace] { inspection.addressSpaces }
  var processorThreads: [Int] { inspection.processorThreads }
  var exitSummaries: [ExitSummary] { inspection.exitSummaries }
  func measureExits(_ isOn: Bool) { inspection.measureExits(isOn) }

  func files(removedBy request: MachineRequest) -> [PassedFile] { inspection.files(removedBy: request) }

  func addChardev(_ options: any ChardevOptions, id: Identifier) throws(Chardevs.Problem) {
    try machineChardevs.add(options, id: id)
  }

  func removeChardev(_ name: String) throws(Chardevs.Problem) { try machineChardevs.remove(name) }

  func remappingText() -> String { RemappingText.units(remapping.states()) }

  func translationText(_ arguments: [String]) -> String {
    switch TranslationText.answer(arguments, remapping) {
    case .success(let text): text
    case .failure(let mistake): mistake.line + "\n"
    }
  }
}
