import FakeVhostUser
import Glibc
import Hardware
import Linux
import TestSupport
import Testing
import VhostUser

@testable import Devices
@testable import Machine

/// Runs a `-netdev vhost-user` of a running machine without a CPU. The test is the driver, and the back end.
@Suite("a network over vhost-user", .timeLimit(.minutes(5))) struct VhostUserNetworkTests {
  private let path = "/tmp/nestling-vhost-user-net-\(getpid())-\(UInt32.random(in: 0 ... .max))"

  private func abilities(_ more: UInt64 = 0) -> FakeBackEnd.Abilities {
    var abilities = FakeBackEnd.Abilities()
    // VIRTIO_NET_F_CSUM and MRG_RXBUF, and VIRTIO_F_INDIRECT_DESC.
    abilities.features |= 1 << 0 | 1 << 15 | 1 << 28 | more
    abilities.queueCount = 1
    return abilities
  }

  private func chardev(reconnect: UInt32 = 1) throws -> SocketChardevOptions {
    var chardev = SocketChardevOptions()
    chardev.id = try Identifier(text: "c0")
    chardev.path = path
    chardev.reconnect = reconnect
    return chardev
  }

  private func netdev(_ more: [(String, String)] = []) throws -> VhostUserNetdevOptions {
    let all = [("id", "n0"), ("chardev", "c0")] + more
    return try VhostUserNetdevOptions(all.map { PropertyAssignment(name: $0.0, value: $0.1) })
  }

  private func enables(_ backEnd: FakeBackEnd) -> [[UInt8]] {
    backEnd.log.filter { $0.request == .setVringEnable }.map(\.payload)
  }

  private func enable(_ queue: UInt32, _ isEnabled: Bool) -> [UInt8] {
    [UInt8](littleEndian: queue, UInt32(isEnabled ? 1 : 0))
  }

  @Test func `the link follows the back end, and the queues continue with the next one`() throws {
    defer { unlink(path) }
    let first = try FakeBackEnd(at: path, abilities())
    try runNetworkMachine([try netdev()], [try networkCard("d0", on: "n0")], chardevs: [try chardev()]) {
      machine, notices in
      let guest = NetworkGuest(machine)
      let id = try Identifier(text: "n0")
      let name = try Identifier(text: "c0")
      #expect(eventually { guest.isLinkUp })
      #expect(machine.inspection.networkCards.first?.netdev?.status == .vhostUser(name))
      #expect(eventually { enables(first).suffix(2) == [enable(0, true), enable(1, true)] })
      #expect(first.last(.setMemTable) != nil)
      // The back end loses requests in flight anyway, and need not make a region for them.
      #expect(first.last(.getInflightFD) == nil)
      // VERSION_1 and the protocol's bit: the back end does not get the bits of the device's own features.
      #expect(first.last(.setFeatures)?.value == 1 << 32 | 1 << 30)

      #expect(machine.board.networks.setLink("d0", up: false))
      #expect(eventually { enables(first).suffix(2) == [enable(0, false), enable(1, false)] })
      #expect(machine.board.networks.setLink("d0", up: true))
      #expect(eventually { enables(first).suffix(2) == [enable(0, true), enable(1, true)] })

      unlink(path)
      first.die()
      #expect(eventually { !guest.isLinkUp })
      #expect(eventually { notices.all.contains(.vhostUserDisconnected(id)) })
      #expect(guest.status == 0xf)
      #expect(machine.chardevs.all.map(\.endpointName) == ["disconnected:unix:\(path)"])

      let second = try FakeBackEnd(at: path, abilities())
      #expect(eventually { guest.isLinkUp })
      #expect(notices.all.contains(.vhostUserConnected(id, chardev: name)))
      #expect(eventually { enables(second).suffix(2) == [enable(0, true), enable(1, true)] })
      #expect(guest.status == 0xf)
      // The driver's reset ends the session of the back end.
      guest.start()
      #expect(eventually { second.log.filter { $0.request == .setFeatures }.count == 2 })
    }
  }

  @Test func `without reconnect= the link stays down, and the device works no more`() throws {
    defer { unlink(path) }
    let backEnd = try FakeBackEnd(at: path, abilities())
    let chardev = try chardev(reconnect: 0)
    try runNetworkMachine([try netdev()], [try networkCard("d0", on: "n0")], chardevs: [chardev]) { machine, _ in
      let guest = NetworkGuest(machine)
      #expect(eventually { enables(backEnd).suffix(2) == [enable(0, true), enable(1, true)] })
      backEnd.die()
      #expect(eventually { !guest.isLinkUp })
      guest.start()
      #expect(guest.status == 0xf && !guest.isLinkUp)
    }
  }

  @Test func `a device offers the packet features that the back end has, too`() throws {
    let server = VirtioFeatures(rawValue: abilities().features)
    let capabilities = NetworkCapabilities(sends: .all, receives: .all, pairs: 2, serverFeatures: server)
    var parameters = VirtioNetParameters()
    parameters.features.insert(.netMultiqueue)
    let offered = VirtioNet.offered(parameters, capabilities)
    #expect(offered.intersection(VirtioNet.ringFeatures) == [.netChecksum, .netMergeBuffers])
    #expect(offered.isSuperset(of: [.netControlQueue, .netStatus]))
    #expect(!offered.contains(.netControlGuestOffloads))
  }

  @Test func `an IOMMU needs a back end that translates`() throws {
    for translates in [false, true] {
      defer { unlink(path) }
      let backEnd = try FakeBackEnd(at: path, abilities(translates ? 1 << 33 : 0))
      var card = try networkCard("d0", on: "n0")
      card.parameters.transport.iommuPlatform = true
      let devices: [any DeviceOptions] = [IntelIOMMUOptions(), card]
      guard translates else {
        let problem = VhostUserProblem(typeName: "virtio-net-pci", reason: .noTranslation)
        #expect(throws: StartError.vhostUser(problem)) {
          try runNetworkMachine([try netdev()], devices, chardevs: [try chardev()]) { _, _ in }
        }
        continue
      }
      try runNetworkMachine([try netdev()], devices, chardevs: [try chardev()]) { machine, _ in
        #expect(eventually { machine.inspection.networkCards.first?.isLinkUp == true })
        #expect(backEnd.last(.setBackendReqFD) != nil)
      }
    }
  }

  @Test func `a back end that lies ends the start, and one that is silent does not delay netdev_add`() throws {
    defer { unlink(path) }
    let liar = try FakeBackEnd(at: path, abilities()) { request in
      request.request == .getFeatures ? .bytes(FakeBackEnd.message(1, [1, 2]), []) : .normal
    }
    let error = NetdevOpenError.vhostUser(.backEnd(.messageSize(request: 1, size: 2)))
    let id = try Identifier(text: "n0")
    #expect(throws: StartError.netdev(typeName: "vhost-user", id: id, error)) {
      try runNetworkMachine([try netdev()], [], chardevs: [try chardev()]) { _, _ in }
    }
    liar.die()
    unlink(path)
    let silent = try FakeBackEnd(at: path, abilities()) { _ in .silence }
    try runNetworkMachine([], [], chardevs: [try chardev()], sharesMemory: true) { machine, _ in
      let before = Clock.monotonic()
      try machine.control.perform(.addNetdev(try netdev()))
      #expect(Clock.monotonic() - before < 5_000_000_000)
      #expect(eventually { silent.last(.getFeatures) != nil })
      #expect(throws: Chardevs.Problem.inUse("c0")) { try machine.chardevs.remove("c0") }
      try machine.control.perform(.removeNetdev("n0"))
      // The chardev is free again.
      try machine.control.perform(.addNetdev(try netdev()))
      try machine.control.perform(.removeNetdev("n0"))
      try machine.chardevs.remove("c0")
    }
  }

  @Test func `private RAM and a missing chardev are refused`() throws {
    let id = try Identifier(text: "n0")
    try runNetworkMachine([], [], chardevs: []) { machine, _ in
      do throws(RequestError) {
        try machine.control.perform(.addNetdev(try! netdev()))
        Issue.record("the netdev was added")
      } catch {
        guard case .failed(.netdev("vhost-user", id: id, .vhostUser(.privateMemory))) = error else { throw error }
      }
    }
    var configuration = MachineConfiguration()
    configuration.netdevs = [try netdev()]
    let problem = NetdevProblem.chardev(.notFound(try Identifier(text: "c0")))
    #expect(throws: ConfigurationError.netdev(index: 0, problem)) { try configuration.check() }
  }
}
