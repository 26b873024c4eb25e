import Hardware
import PCI
import TestSupport
import Testing

@testable import Devices

/// The IOMMU may translate a request to another function's BAR or to an address without any memory. The request is then
/// refused, and the driver sees Received Master Abort.
@Suite("Requests to other functions' BARs")
struct PeerRequestTests {
  private static let receivedMasterAbort: UInt64 = 1 << 13
  /// The address that the remapper maps to the other function's BAR.
  private static let virtual: UInt64 = 0x5000_0000

  private let remapper = PageRemapper(memory: HeapMemory(size: 4 << 20))
  private let board: TestBoard
  /// The other function: its liveness register at 0x04 reads as the inverse of the value written.
  private let peer: TestFunction
  private let peerDevice: Edu

  init() {
    remapper.map(Self.virtual, to: TestFunction.base, count: 4096)
    remapper.map(0x10_0000, to: 0x10_0000, count: 0x10_0000)
    board = TestBoard(remapper: remapper)
    peerDevice = Edu(mask: .max, environment: board.environment, address: RequesterID(bus: 0, device: 9, function: 0))
    peer = TestFunction(peerDevice.function, on: board)
    peer.write(0x04, 0x1234)
  }

  private func status(_ function: Function) -> UInt64 {
    function.readConfiguration(offset: StandardOffset.status, width: .word)
  }

  @Test("edu moves nothing, and has Received Master Abort until its driver clears it")
  func edu() {
    let device = Edu(mask: .max, environment: board.environment, address: RequesterID(bus: 0, device: 3, function: 0))
    let function = device.function
    function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
    func transfer(from source: UInt64, to destination: UInt64, command: UInt64) {
      for (offset, value): (UInt64, UInt64) in [(0x80, source), (0x88, destination), (0x90, 8), (0x98, command)] {
        device.writeRegion(bar: 0, offset: offset, width: .quadword, value: value)
      }
    }
    func clear() { function.writeConfiguration(offset: StandardOffset.status, width: .word, value: 0x2000) }
    transfer(from: 0x40000, to: 0x10_0000, command: 3)
    #expect(status(function) & Self.receivedMasterAbort == 0, "a transfer to RAM sets nothing")
    transfer(from: 0x40000, to: 0x7000_0000, command: 3)
    #expect(status(function) & Self.receivedMasterAbort == 0, "the IOMMU itself reports what it refuses")
    transfer(from: 0x40000, to: Self.virtual, command: 3)
    #expect(status(function) & Self.receivedMasterAbort != 0)
    #expect(peer.read(0x04) == 0xffff_edcb)
    #expect(status(peerDevice.function) & Self.receivedMasterAbort == 0)
    #expect(status(function) & Self.receivedMasterAbort != 0, "a read does not clear the bit")
    clear()
    #expect(status(function) & Self.receivedMasterAbort == 0)
    // Zeroes arrive instead of the other function's identification.
    transfer(from: Self.virtual, to: 0x40000, command: 1)
    transfer(from: 0x40000, to: 0x10_0000, command: 3)
    #expect(board.memory.loadUInt64(at: 0x10_0000) == 0)
    #expect(status(function) & Self.receivedMasterAbort != 0)
    clear()
    transfer(from: 0x40000, to: Self.virtual, command: 3)
    function.reset()
    #expect(status(function) & Self.receivedMasterAbort == 0)
    transfer(from: 0x40000, to: Self.virtual, command: 3)
    #expect(status(function) & Self.receivedMasterAbort == 0, "without Bus Master Enable no request is made")
  }

  @Test("a disk with its data or rings in another BAR has Received Master Abort")
  func disk() throws {
    var disk = try TestDisk(remapper: remapper)
    // Without iommu_platform, addresses are physical.
    let answer = try disk.request(0, [.writable(TestFunction.base, 512)])
    #expect(answer?.status == 1)
    #expect(status(disk.pci.function) & Self.receivedMasterAbort != 0)
    #expect(disk.backend.operations.isEmpty)
    disk.pci.function.writeConfiguration(offset: StandardOffset.status, width: .word, value: 0x2000)
    try disk.driver.negotiate()
    var layout = try disk.driver.setUp(queue: 0, at: TestFunction.base)
    try disk.driver.start()
    layout.submit([.readable(TestDisk.header, 16), .writable(TestDisk.status, 1)])
    try disk.driver.notify(0)
    #expect(try disk.driver.status == 0x4f)
    #expect(status(disk.pci.function) & Self.receivedMasterAbort != 0)
  }

  @Test("after a refused request, dma-engine and iommu-testdev set Received Master Abort and their result codes")
  func others() {
    let engine = DMAEngine(
      environment: board.environment, address: RequesterID(bus: 0, device: 4, function: 0))
    engine.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
    for command: UInt64 in [1, 2, 3] {
      for (offset, value): (UInt64, UInt64) in [(0x18, Self.virtual), (0x20, Self.virtual), (0x28, 8)] {
        engine.writeRegion(bar: 0, offset: offset, width: .quadword, value: value)
      }
      engine.writeRegion(bar: 0, offset: 0x10, width: .doubleword, value: command)
      #expect(engine.readRegion(bar: 0, offset: 0x0c, width: .doubleword) >> 8 == 6)
      #expect(status(engine.function) & Self.receivedMasterAbort != 0)
      engine.function.writeConfiguration(offset: StandardOffset.status, width: .word, value: 0x2000)
    }
    let device = IOMMUTestDevice(
      environment: board.environment, address: RequesterID(bus: 0, device: 5, function: 0))
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x6)
    for (offset, value): (UInt64, UInt64) in [(0x04, Self.virtual), (0x0c, 4), (0x14, 1)] {
      device.writeRegion(bar: 0, offset: offset, width: .doubleword, value: value)
    }
    _ = device.readRegion(bar: 0, offset: 0, width: .doubleword)
    #expect(device.readRegion(bar: 0, offset: 0x10, width: .doubleword) == 0xdead_0002)
    #expect(status(device.function) & Self.receivedMasterAbort != 0)
    #expect(peer.read(0x04) == 0xffff_edcb)
  }
}
