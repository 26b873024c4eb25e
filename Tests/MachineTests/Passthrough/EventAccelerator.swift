import FakeVFIO
import Hardware
import Linux
import Passthrough
import Synchronization
import TestSupport
import Testing

@testable import Machine

extension RecordingDeviceMemory: DeviceMemory {}

/// An accelerator whose CPUs do nothing and whose local APICs accept eventfds. It only records memory slots.
final class EventAccelerator: Accelerator {
  let physicalAddressWidth = 46
  let clock: any MachineClock
  let localInterrupts: any LocalInterrupts = EventInterrupts()
  let doorbells: any Doorbells
  let slots = RecordingDeviceMemory()
  let registry: Registry

  init(kernel: FakeKernel) {
    let inner = QTestAccelerator()
    clock = inner.clock
    doorbells = inner.doorbells
    registry = Registry(kernel)
  }

  var deviceMemory: (any DeviceMemory)? { slots }
  var hostDeviceFiles: (any HostDeviceRegistry)? { registry }

  func makeProcessors(board: Board) throws(StartError) -> any Processors {
    QTestAccelerator().makeProcessors(board: board)
  }

  /// KVM's device "vfio" as a part of the fake kernel.
  final class Registry: HostDeviceRegistry {
    private let kernel: FakeKernel
    private let files = Mutex<[Int32]>([])
    init(_ kernel: FakeKernel) { self.kernel = kernel }

    var all: [Int32] { files.withLock { $0 } }

    func add(_ descriptor: Int32) throws(SystemError) {
      let (problem, isBound) = kernel.state.withLock { state in
        (state.fails("KVM_DEV_VFIO_FILE_ADD", 0), state.devices.contains { $0.boundFile == descriptor })
      }
      if let problem { throw SystemError("KVM_DEV_VFIO_FILE_ADD", code: -problem) }
      #expect(!isBound, "some drivers need the VM when they are bound")
      files.withLock { $0.append(descriptor) }
    }

    func remove(_ descriptor: Int32) {
      #expect(kernel.state.withLock { $0.files[descriptor] != nil }, "the file is still open")
      files.withLock { $0.removeAll { $0 == descriptor } }
    }
  }

  private final class EventInterrupts: LocalInterrupts {
    func send(_ message: InterruptMessage) {}
    func makeVector() -> any MessageVector { Vector() }
    func setLevelTriggered(pin: Int, _ message: InterruptMessage?) {}

    private final class Vector: MessageVector {
      private final class Event {
        let descriptor: EventDescriptor
        init() throws(SystemError) { descriptor = try EventDescriptor() }
      }
      private let made = try? Event()
      func set(_ message: InterruptMessage) {}
      func signal() {}
      var event: Int32? { made?.descriptor.rawValue }
    }
  }
}
