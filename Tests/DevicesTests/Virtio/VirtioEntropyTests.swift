import Hardware
import PCI
import Synchronization
import TestSupport
import Testing

@testable import Devices

@Suite struct VirtioEntropyTests {
  /// A source that counts upwards instead of being random.
  private final class CountingSource: EntropySource {
    private struct State {
      var next: UInt8 = 0
      /// The bytes that are available; nil for an endless supply.
      var supply: Int?
      var handler: (@Sendable () -> Void)?
    }
    private let state = Mutex(State())

    func runDry() { state.withLock { $0.supply = 0 } }

    /// Adds bytes and notifies the device.
    func feed(_ count: Int) {
      state.withLock { state in
        state.supply = (state.supply ?? 0) + count
        return state.handler
      }?()
    }

    func take(_ count: Int, into bytes: inout [UInt8]) -> Int {
      state.withLock { state in
        let count = min(count, state.supply ?? count)
        if let supply = state.supply { state.supply = supply - count }
        for index in 0..<count {
          state.next &+= 1
          bytes[index] = state.next
        }
        return count
      }
    }

    func onReady(_ handler: @escaping @Sendable () -> Void) { state.withLock { $0.handler = handler } }
  }

  /// A timer that the test fires.
  private final class HandTimer: OneShotTimer {
    private let state = Mutex((handler: (@Sendable () -> Void)?.none, times: [UInt32]()))

    /// The milliseconds of each start.
    var times: [UInt32] { state.withLock { $0.times } }

    func start(afterMilliseconds milliseconds: UInt32, _ handler: @escaping @Sendable () -> Void) {
      state.withLock { state in
        state.handler = handler
        state.times.append(milliseconds)
      }
    }

    func fire() { state.withLock { $0.handler.take() }?() }
  }

  private func make(limit: EntropyLimit? = nil) throws -> (TestBoard, CountingSource, TestDriver, DriverQueue) {
    let board = TestBoard()
    let source = CountingSource()
    let pci = VirtioPCI(
      device: VirtioEntropy(source: source, limit: limit), options: VirtioOptions(), environment: board.environment,
      address: RequesterID(bus: 0, device: 4, function: 0))
    board.plug(pci)
    let driver = TestDriver(pci, on: board)
    try driver.negotiate()
    let queue = try driver.setUp(queue: 0, at: 0x1_0000)
    try driver.start()
    return (board, source, driver, queue)
  }

  @Test("the device has no configuration structure")
  func showsNoDeviceConfiguration() throws {
    let (_, _, driver, _) = try make()
    #expect(driver.config(0x00, .doubleword) == 0x1044_1af4)
    #expect(driver.capabilities.map(\.type) == [1, 2, 3, 5])
  }

  @Test("the buffers of a request are filled")
  func fillsWhatItIsGiven() throws {
    var (board, _, driver, queue) = try make()
    queue.submit([.writable(0x8_0000, 3), .writable(0x9_0000, 2)])
    try driver.notify(0)
    #expect(queue.takeUsed() == [.init(id: 0, length: 5)])
    #expect(board.memory.copy(0x8_0000, count: 4) == [1, 2, 3, 0])
    #expect(board.memory.copy(0x9_0000, count: 3) == [4, 5, 0])
  }

  @Test("a request gets at most 64 KiB")
  func aRequestHasABound() throws {
    var (_, _, driver, queue) = try make()
    queue.submit([.writable(0x8_0000, 0x2_0000)])
    try driver.notify(0)
    #expect(queue.takeUsed() == [.init(id: 0, length: 0x1_0000)])
  }

  /// virtio 1.2, 5.4.6.2: a device places at least one byte. A request therefore waits while the source has none.
  @Test("a request waits for a source that has run dry, and gets the bytes that arrive")
  func aDrySource() throws {
    var (board, source, driver, queue) = try make()
    source.runDry()
    queue.submit([.writable(0x8_0000, 64)])
    queue.submit([.writable(0x9_0000, 64)])
    try driver.notify(0)
    #expect(queue.takeUsed() == [])
    source.feed(5)
    #expect(queue.takeUsed() == [.init(id: 0, length: 5)])
    #expect(board.memory.copy(0x8_0000, count: 6) == [1, 2, 3, 4, 5, 0])
    source.feed(100)
    #expect(queue.takeUsed() == [.init(id: 1, length: 64)])
  }

  @Test("a reset forgets a request that waits for the source") func aResetWhileDry() throws {
    var (_, source, driver, queue) = try make()
    source.runDry()
    queue.submit([.writable(0x8_0000, 64)])
    try driver.notify(0)
    try driver.negotiate()
    var fresh = try driver.setUp(queue: 0, at: 0x2_0000)
    source.feed(64)
    #expect(queue.takeUsed() == [])
    try driver.start()
    fresh.submit([.writable(0x9_0000, 8)])
    try driver.notify(0)
    #expect(fresh.takeUsed() == [.init(id: 0, length: 8)])
    #expect(queue.takeUsed() == [])
  }

  @Test("a request without room for a byte is returned at once")
  func aRequestWithoutRoom() throws {
    var (_, source, driver, queue) = try make()
    source.runDry()
    queue.submit([.readable(0x8_0000, 8)])
    try driver.notify(0)
    #expect(queue.takeUsed() == [.init(id: 0, length: 0)])
  }

  @Test("the rate limit applies to each period, also across a reset")
  func aLimitHoldsForEachPeriod() throws {
    let timer = HandTimer()
    var (_, _, driver, queue) = try make(limit: EntropyLimit(bytes: 100, period: 250, timer: timer))
    for _ in 0..<4 { queue.submit([.writable(0x8_0000, 64)]) }
    try driver.notify(0)
    // The second request gets the rest, and the third waits, whatever the driver does.
    #expect(queue.takeUsed() == [.init(id: 0, length: 64), .init(id: 1, length: 36)])
    #expect(timer.times == [250])
    try driver.notify(0)
    #expect(queue.takeUsed() == [])
    timer.fire()
    #expect(queue.takeUsed() == [.init(id: 2, length: 64), .init(id: 3, length: 36)])
    #expect(timer.times == [250, 250])
    // A reset does not lift the limit.
    try driver.negotiate()
    var fresh = try driver.setUp(queue: 0, at: 0x2_0000)
    try driver.start()
    fresh.submit([.writable(0x8_0000, 64)])
    try driver.notify(0)
    #expect(fresh.takeUsed() == [])
    timer.fire()
    #expect(fresh.takeUsed() == [.init(id: 0, length: 64)])
  }

  @Test("the device asks for a reset if a buffer is outside RAM")
  func aBufferOutsideRAMAsksForAReset() throws {
    var (_, _, driver, queue) = try make()
    queue.submit([.writable(0x4000_0000, 64)])
    try driver.notify(0)
    #expect(try driver.status == 0x4f)
  }
}
