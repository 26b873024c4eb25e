import FakeVhostUser
import Glibc
import Hardware
import Linux
import PCI
import TestSupport
import Testing
import VhostUser

@testable import Machine

/// A machine without a CPU, whose disk is behind the IOMMU and is served by a back end with a device IOTLB.
@Suite("the device IOTLB of a vhost-user disk", .timeLimit(.minutes(5))) struct VhostUserTranslationTests {
  private static let address = RequesterID(bus: 0, device: 4, function: 0)
  private static let memorySize: UInt64 = 64 << 20

  private func configuration(_ path: String, isBehindUnit: Bool) throws -> MachineConfiguration {
    var configuration = MachineConfiguration()
    configuration.accelerator = .qtest
    configuration.memory.size = Self.memorySize
    var chardev = SocketChardevOptions()
    chardev.id = try Identifier(text: "c0")
    chardev.path = path
    configuration.chardevs = [chardev]
    var options = VhostUserBlockOptions()
    options.chardev = chardev.id
    options.function.address = Self.address
    options.transport.iommuPlatform = true
    configuration.devices = isBehindUnit ? [IntelIOMMUOptions(), options] : [options]
    return configuration
  }

  private func run(
    isBehindUnit: Bool = true, _ body: (FakeBackEnd, VirtioTestDriver) throws -> Void
  ) throws {
    let path = "/tmp/nestling-iotlb-\(getpid())-\(UInt32.random(in: 0 ... .max))"
    var abilities = FakeBackEnd.Abilities()
    abilities.features |= 1 << 33
    abilities.protocolFeatures &= ~(1 << 12)
    abilities.configuration = [UInt8](repeating: 0, count: 60)
    let backEnd = try FakeBackEnd(at: path, abilities)
    let machine = try RunningMachine(
      try configuration(path, isBehindUnit: isBehindUnit), interpreter: PassingInterpreter())
    nonisolated(unsafe) let running = machine
    let thread = try Thread(name: "machine") { _ = try? running.run() }
    defer {
      machine.control.requestQuit(.monitorQuit)
      thread.join()
      unlink(path)
    }
    #expect(eventually { machine.control.status == .running })
    // VERSION_1 and ACCESS_PLATFORM.
    let driver = VirtioTestDriver(machine.board, Self.address, features: 3)
    driver.start()
    #expect(eventually { backEnd.last(.setVringEnable) != nil })
    try body(backEnd, driver)
  }

  /// Sends a miss, and waits for the answer to it.
  private func miss(_ address: UInt64, permissions: UInt8, _ backEnd: FakeBackEnd) throws {
    var payload = [UInt8](littleEndian: address, UInt64(0), UInt64(0), permissions, UInt8(1))
    payload += [UInt8](repeating: 0, count: 6)
    let channel = try #require(backEnd.channel)
    // With a request for an acknowledgement, which comes after the translation.
    send(FakeBackEnd.message(1, flags: 9, payload), with: [], over: channel.rawValue)
    let (bytes, _) = try #require(try channel.file.receive(count: 20))
    #expect(bytes == FakeBackEnd.message(1, [UInt8](repeating: 0, count: 8)))
  }

  private func messages(_ backEnd: FakeBackEnd, type: UInt8) -> [[UInt8]] {
    backEnd.log.filter { $0.request == .iotlbMessage && $0.payload[25] == type }.map(\.payload)
  }

  @Test func `a miss is answered with RAM only, and Bus Master Enable takes everything back`() throws {
    try run { backEnd, driver in
      #expect(backEnd.last(.setFeatures).map { $0.value & 1 << 33 != 0 } == true)
      // The unit does not translate yet, so the mapping is all RAM below 4 GiB.
      try miss(0x10_1000, permissions: 1, backEnd)
      #expect(eventually { messages(backEnd, type: 2).count == 1 })
      let update = try #require(messages(backEnd, type: 2).first)
      let first = update.load(UInt64.self, at: 0)
      #expect(first == 0 && update.load(UInt64.self, at: 8) == Self.memorySize)
      #expect(update.load(UInt64.self, at: 16) == first && update[24] == 3)
      // Older entries for a part of the range go first.
      #expect(messages(backEnd, type: 3).map { $0.load(UInt64.self, at: 8) } == [Self.memorySize])
      try miss(0x10_1000, permissions: 2, backEnd)
      #expect(eventually { messages(backEnd, type: 2).count == 2 })
      #expect(messages(backEnd, type: 3).count == 2)
      // There is no RAM.
      try miss(0x8000_0000, permissions: 1, backEnd)
      #expect(messages(backEnd, type: 2).count == 2)

      driver.write(configuration: 4, 2)
      #expect(eventually { messages(backEnd, type: 3).count == 3 })
      #expect(eventually { backEnd.last(.getVringBase) != nil })
      // Now no miss has an answer.
      try miss(0x10_1000, permissions: 1, backEnd)
      #expect(messages(backEnd, type: 2).count == 2)
    }
  }

  @Test func `a ring that an invalidation takes from the back end is translated again`() throws {
    try run { backEnd, driver in
      /// Invalidates all translations by the IOTLB Invalidate Register.
      func invalidateAll() { driver.writeMemory(0xfed9_00fc, 4, 0x9000_0000) }
      try miss(0x10_1000, permissions: 3, backEnd)
      #expect(eventually { messages(backEnd, type: 2).count == 1 })
      invalidateAll()
      // The update follows the invalidation of everything, and of its own range.
      #expect(eventually { messages(backEnd, type: 2).count == 2 })
      let sizes = backEnd.log.filter { $0.request == .iotlbMessage }.map { $0.payload.load(UInt64.self, at: 8) }
      #expect(sizes == [Self.memorySize, Self.memorySize, .max, Self.memorySize, Self.memorySize])
    }
  }

  @Test func `without a unit the back end gets guest physical addresses`() throws {
    try run(isBehindUnit: false) { backEnd, driver in
      #expect(backEnd.last(.setFeatures).map { $0.value & 1 << 33 == 0 } == true)
    }
  }
}
