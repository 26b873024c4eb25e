import Machine

/// What monitors ask a machine, and ask of it. Commands know no more of the machine than this.
package protocol MonitorTarget: AnyObject, Sendable {
  var control: any MachineControl { get }
  var configuration: MachineConfiguration { get }
  var functions: [MachineInspection.Function] { get }
  var chardevs: [MachineInspection.ChardevState] { get }
  var devices: [Device] { get }
  var objects: [any ObjectOptions] { get }
  var blockNodes: [MachineInspection.BlockState] { get }
  var addressSpaces: [MachineInspection.AddressSpace] { get }
  /// The open files of the monitor that asks.
  var descriptors: MonitorDescriptors { get }
  /// The kernel's numbers of the CPUs' threads; empty while there are none.
  var processorThreads: [Int] { get }
  /// In the CPUs' order; empty while nothing is measured.
  var exitSummaries: [ExitSummary] { get }
  /// Begins to measure how long exits keep CPUs out of the guest, anew, or ends that.
  func measureExits(_ isOn: Bool)

  /// `MachineInspection.files(removedBy:)`
  func files(removedBy request: MachineRequest) -> [PassedFile]
  /// It may wait for the other end.
  func addChardev(_ options: any ChardevOptions, id: Identifier) throws(Chardevs.Problem)
  func removeChardev(_ name: String) throws(Chardevs.Problem)

  /// `info iommu`
  func remappingText() -> String
  /// `info iommu translate`
  /// - Parameter arguments: the words after it.
  /// - Returns: the text, or the line that says what is wrong with the words.
  func translationText(_ arguments: [String]) -> String
}
