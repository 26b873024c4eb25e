import Devices
import Glibc
import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

/// Tests queues that threads serve, as on the host, while the driver resets the device.
@Suite struct VirtioThreadTests {
  private static func parts() -> [DriverQueue.Buffer] {
    // 8 MiB: two pieces.
    (0..<32).map { _ in DriverQueue.Buffer.writable(TestDisk.data, 256 << 10) }
  }

  @Test("a reset waits for the request in flight, and no longer")
  func resetWaitsForTheRequestInFlightAndNoLonger() throws {
    var disk = try TestDisk(sectors: 16384, workers: ThreadedWorkerSource())
    let entered = Shared(false)
    let leave = Shared(false)
    disk.backend.onRead {
      entered.value = true
      _ = eventually { leave.value }
    }
    #expect(try disk.request(0, Self.parts()) == nil)
    #expect(eventually { entered.value })

    let isReset = Shared(false)
    let pci = disk.pci
    let resetting = TestThread {
      pci.writeRegion(bar: 4, offset: 0x14, width: .byte, value: 0)
      isReset.value = true
    }
    // A notification does not wait for the request, and the reset does not end before the request.
    try disk.driver.write(2, 0, .word, 0)
    usleep(20_000)
    #expect(!isReset.value)
    leave.value = true
    resetting.join()
    #expect(isReset.value)
    // The second piece was never read, and the device no longer uses the driver's memory.
    #expect(disk.backend.operations.count == 1)
    #expect(disk.statusByte == 0xee)
    #expect(disk.queues[0].takeUsed() == [])
    disk.pci.function.revoke()
  }

  @Test("many resets under load leave a working device")
  func manyResetsUnderLoad() throws {
    var options = VirtioBlockParameters()
    options.queueCount = 2
    let disk = try TestDisk(options, workers: ThreadedWorkerSource())
    let driver = disk.driver
    disk.prepare(0, 1)
    for round in 0..<100 {
      try driver.negotiate()
      var queues: [DriverQueue] = []
      for index in 0..<UInt64(2) {
        let base = TestDisk.rings + index * DriverQueue.footprint
        disk.board.memory.store([UInt8](repeating: 0, count: Int(DriverQueue.footprint)), at: base)
        queues.append(try driver.setUp(queue: UInt16(index), at: base))
      }
      try driver.start()
      for index in 0..<2 {
        for slot in 0..<UInt64(8) {
          queues[index].submit([
            .readable(TestDisk.header, 16), .writable(TestDisk.data + slot << 12, 512),
            .writable(0x9_0000 + UInt64(index) << 8 + slot, 1),
          ])
        }
        try driver.notify(UInt16(index))
      }
      if round % 2 == 0 {
        var done = [0, 0]
        #expect(
          eventually {
            for index in 0..<2 { done[index] += queues[index].takeUsed().count }
            return done == [8, 8]
          })
      }
    }
    #expect(try driver.status == 0xf)
    disk.pci.function.revoke()
  }
}

/// A value that threads share.
final class Shared: Sendable {
  private let storage: Atomic<Bool>
  init(_ value: Bool) { storage = Atomic(value) }
  var value: Bool {
    get { storage.load(ordering: .acquiring) }
    set { storage.store(newValue, ordering: .releasing) }
  }
}
