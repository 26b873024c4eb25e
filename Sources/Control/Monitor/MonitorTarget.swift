import Machine

/// The machine as monitors see it: their queries and requests. Commands use no other part of the machine.
package protocol MonitorTarget: AnyObject, Sendable {
  var control: any MachineControl { get }
  var configuration: MachineConfiguration { get }
  var functions: [MachineInspection.Function] { get }
  var chardevs: [MachineInspection.ChardevState] { get }
  var devices: [Device] { get }
  var objects: [any ObjectOptions] { get }
  var blockNodes: [MachineInspection.BlockState] { get }
  /// The netdevs that no device uses.
  var freeNetdevs: [MachineInspection.NetdevState] { get }
  var networkCards: [MachineInspection.NetworkCard] { get }
  var addressSpaces: [MachineInspection.AddressSpace] { get }
  /// The open files that the monitor's client has passed.
  var descriptors: MonitorDescriptors { get }
  /// The kernel's ids of the vCPU threads; empty while there are none.
  var processorThreads: [Int] { get }
  /// The exits of each CPU, in the CPUs' order; empty while exits are not measured.
  var exitSummaries: [ExitSummary] { get }
  /// Starts, restarts or stops the measurement of exits.
  func measureExits(_ isOn: Bool)

  /// `MachineInspection.files(removedBy:)`
  func files(removedBy request: MachineRequest) -> [PassedFile]
  /// May block until a client, a server or the reader of a FIFO connects.
  func addChardev(_ options: any ChardevOptions, id: Identifier) throws(Chardevs.Problem)
  func removeChardev(_ name: String) throws(Chardevs.Problem)

  /// `info iommu`
  func remappingText() -> String
  /// `info iommu translate`
  /// - Parameter arguments: The words after `translate`.
  /// - Returns: The text, or one line that explains the error in the arguments.
  func translationText(_ arguments: [String]) -> String
}
