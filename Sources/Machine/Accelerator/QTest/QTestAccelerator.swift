import Hardware
import Linux

/// QEMU's accelerator of this name: there is no CPU, and what a CPU would do comes by the qtest protocol. Time stands
/// still but for what is asked there.
final class QTestAccelerator: Accelerator {
  /// QEMU's width where no CPU of the host's own is asked for.
  let physicalAddressWidth = 40
  let steppedClock = SteppedClock()
  let localInterrupts: any LocalInterrupts
  let doorbells: any Doorbells = NoDoorbells()

  /// - Parameter localInterrupts: takes what would reach local APICs, of which there are none.
  init(localInterrupts: any LocalInterrupts = NoLocalInterrupts()) { self.localInterrupts = localInterrupts }

  var clock: any MachineClock { steppedClock }

  func makeProcessors(board: Board) -> any Processors { NoProcessors() }
}

/// Where there is no CPU there is no local APIC: a message is lost.
final class NoLocalInterrupts: LocalInterrupts {
  func send(_ message: InterruptMessage) {}
  func makeVector() -> any MessageVector { Vector() }
  func setLevelTriggered(pin: Int, _ message: InterruptMessage?) {}

  private final class Vector: MessageVector {
    func set(_ message: InterruptMessage) {}
    func signal() {}
  }
}

/// Each write comes to its device.
private final class NoDoorbells: Doorbells {
  func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool { false }
  func detach(_ event: Int32, fromDoorbell address: UInt64) {}
}

private final class NoProcessors: Processors {
  func reset(entry: BootEntry) {}
  func start() {}
  func requestStop() {}
  func stop() {}
}
