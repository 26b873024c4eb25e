import Hardware
import Linux
import TestSupport
import Testing

@testable import Machine

/// Measures how long exits keep a CPU out of the guest.
@Suite struct ExitTimesTests {
  private static let hasKVM = (try? FileDescriptor(opening: "/dev/kvm", 2)) != nil

  /// A device whose port 0x300 takes 300 ms. Its other ports answer at once.
  private final class SlowDevice: BusDevice {
    static let nanoseconds: UInt64 = 300_000_000

    func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0 }
    func write(offset: UInt64, width: AccessWidth, value: UInt64) {
      guard offset == 0 else { return }
      let end = Clock.monotonic() + Self.nanoseconds
      while Clock.monotonic() < end {}
    }
  }

  @Test(.enabled(if: hasKVM))
  func `the longest exit is reported with its cause, and only while exits are measured`()
    throws
  {
    let size: UInt64 = 64 << 20
    let memory = try GuestMemory(size: size, lowLimit: BoardLayout.lowMemoryLimit(memorySize: size))
    let accelerator = try KVMAccelerator(
      device: "/dev/kvm", memory: memory, processorCount: 1, loop: try EventLoop(name: "timer test"))
    let board = try Board(
      memory: memory, accelerator: accelerator,
      layout: try #require(BoardLayout(memorySize: size, physicalAddressWidth: accelerator.physicalAddressWidth)),
      processorCount: 1, units: [], serialOutput: nil, events: try EventQueue())
    defer { board.removeDevices() }
    _ = board.ioBus.attach(SlowDevice(), at: 0x300, size: 8)
    let processors = try accelerator.makeProcessors(board: board)
    // mov dx, 0x304; out dx, al; in al, dx; mov dx, 0x300; out dx, al; again.
    let code: [UInt8] = [0x66, 0xba, 4, 3, 0xee, 0xec, 0x66, 0xba, 0, 3, 0xee, 0xeb, 0xf4]
    let isLoaded = memory.write(code.span.bytes, to: 0x1000)
    #expect(isLoaded)
    try processors.reset(
      entry: .protectedMode(ProtectedModeEntry(instructionPointer: 0x1000, accumulator: 0x5a, startInformation: 0)))
    Thread.installKick()
    try processors.start()
    defer { processors.stop() }
    #expect(processors.exitSummaries.isEmpty)
    processors.measureExits(true)
    #expect(eventually { (processors.exitSummaries.first?.count ?? 0) >= 6 })
    let summary = try #require(processors.exitSummaries.first)
    #expect(summary.longest.time >= SlowDevice.nanoseconds && summary.longest.cause == .port(0x300, written: 0))
    #expect(summary.longestUndisturbed.time <= summary.longest.time)
    #expect(summary.total >= summary.longest.time)
    // A new measurement starts at zero.
    processors.measureExits(true)
    #expect(processors.exitSummaries[0].count < summary.count)
    processors.measureExits(false)
    #expect(processors.exitSummaries.isEmpty)
  }

  @Test
  func `an exit during a preemption may be the longest, but not the longest undisturbed one`() {
    var summary = ExitSummary()
    summary.add(5, .halt, isUndisturbed: true)
    summary.add(900, .signal, isUndisturbed: false)
    summary.add(7, .other, isUndisturbed: true)
    #expect(summary.count == 3 && summary.total == 912)
    #expect(summary.longest == .init(time: 900, cause: .signal))
    #expect(summary.longestUndisturbed == .init(time: 7, cause: .other))
  }
}
