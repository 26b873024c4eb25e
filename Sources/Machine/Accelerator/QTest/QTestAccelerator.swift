import Hardware
import Linux

/// The accelerator `qtest`, as in QEMU: there is no CPU. A client of the qtest protocol makes the accesses that a CPU
/// would make, and time advances only at the client's command.
final class QTestAccelerator: Accelerator {
  /// QEMU's width for CPU models other than `host`.
  let physicalAddressWidth = 40
  let steppedClock = SteppedClock()
  let localInterrupts: any LocalInterrupts
  let doorbells: any Doorbells = NoDoorbells()

  /// - Parameter localInterrupts: receives the messages to local APICs, which this machine does not have.
  init(localInterrupts: any LocalInterrupts = NoLocalInterrupts()) { self.localInterrupts = localInterrupts }

  var clock: any MachineClock { steppedClock }

  func makeProcessors(board: Board) -> any Processors { NoProcessors() }
}

/// Local interrupts of a machine without local APICs: all messages are lost.
final class NoLocalInterrupts: LocalInterrupts {
  func send(_ message: InterruptMessage) {}
  func makeVector() -> any MessageVector { Vector() }
  func setLevelTriggered(pin: Int, _ message: InterruptMessage?) {}

  private final class Vector: MessageVector {
    func set(_ message: InterruptMessage) {}
    func signal() {}
  }
}

/// Doorbells that cannot be attached: the devices receive the writes themselves.
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
