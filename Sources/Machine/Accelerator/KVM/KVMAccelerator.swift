import Devices
import Hardware
import KVM
import Linux

/// The accelerator that uses Linux's KVM. The kernel implements the CPUs and the local APICs.
final class KVMAccelerator: Accelerator {
  let clock: any MachineClock = HostClock()
  private let device: String
  private let machine: VirtualMachine
  private let identification: ProcessorIdentification
  private let processorCount: Int
  private let files: HostDeviceFiles

  /// - Parameter device: the path of KVM's device file, usually /dev/kvm.
  init(device: String, memory: GuestMemory, processorCount: Int) throws(StartError) {
    self.device = device
    self.processorCount = processorCount
    do throws(KVMError) {
      let system = try KVMSystem(path: device)
      guard processorCount <= system.processorLimit else {
        throw .tooManyProcessors(asked: processorCount, most: system.processorLimit)
      }
      machine = try VirtualMachine(system: system, memory: memory, ioapicPins: IOAPIC.pinCount)
      files = HostDeviceFiles(of: machine)
      localInterrupts = KVMLocalInterrupts(machine)
      identification = try ProcessorIdentification(system: system, processorCount: processorCount)
    } catch {
      throw .kvm(device: device, error)
    }
  }

  var physicalAddressWidth: Int { identification.physicalAddressWidth }
  let localInterrupts: any LocalInterrupts
  var doorbells: any Doorbells { machine }
  var deviceMemory: (any DeviceMemory)? { machine }
  var hostDeviceFiles: (any HostDeviceRegistry)? { files }

  func makeProcessors(board: Board) throws(StartError) -> any Processors {
    do {
      return try KVMProcessors(machine: machine, count: processorCount, identification: identification, board: board)
    } catch {
      throw .kvm(device: device, error)
    }
  }
}
