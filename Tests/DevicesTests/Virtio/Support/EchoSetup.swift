import Devices
import Hardware
import PCI
import TestSupport

/// An echo device on a board, and its driver.
struct EchoSetup {
  /// Rings and data of the tests in RAM.
  static let rings: UInt64 = 0x1_0000
  static let data: UInt64 = 0x8_0000

  let board: TestBoard
  let device: EchoDevice
  let pci: VirtioPCI
  let driver: TestDriver

  init(
    _ options: VirtioOptions = VirtioOptions(), board: TestBoard = TestBoard(), device: EchoDevice = EchoDevice(),
    router: (any InterruptRouter)? = nil
  ) {
    self.board = board
    self.device = device
    pci = VirtioPCI(
      device: device, options: options, environment: router.map(board.environment.routing) ?? board.environment,
      address: RequesterID(bus: 0, device: 3, function: 0))
    board.plug(pci)
    driver = TestDriver(pci, on: board)
  }

  /// Negotiates, sets queue 0 up and starts.
  func run(_ features: UInt64? = nil, vector: UInt16 = 0xffff) throws -> DriverQueue {
    try driver.negotiate(features)
    let queue = try driver.setUp(queue: 0, at: EchoSetup.rings, vector: vector)
    try driver.start()
    return queue
  }

  /// Sends bytes through queue 0 and returns the bytes that the device wrote.
  func echo(_ bytes: [UInt8], _ queue: inout DriverQueue) throws -> [UInt8]? {
    board.memory.store(bytes, at: EchoSetup.data)
    queue.submit([
      .readable(EchoSetup.data, bytes.count), .writable(EchoSetup.data + 0x1000, bytes.count),
    ])
    try driver.notify(0)
    guard queue.takeUsed().last?.length == UInt32(bytes.count) else { return nil }
    return board.memory.copy(EchoSetup.data + 0x1000, count: bytes.count)
  }
}
