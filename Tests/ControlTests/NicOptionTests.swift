import Machine
import Testing

@testable import Control

/// Compares machines of `-nic` with machines of `-netdev` and `-device`.
@Suite struct NicOptionTests {
  private func machine(_ words: [String]) throws -> MachineConfiguration {
    try configuration(["-kernel", "k"] + words)
  }

  @Test(
    "-nic makes the configuration of -netdev and -device",
    arguments: [
      ("user,id=n", "user,id=n", ""),
      ("id=n,hostfwd=tcp::2222-:22,model=virtio", "user,id=n,hostfwd=tcp::2222-:22", ""),
      ("user,id=n,mac=52:54:00:00:00:07,model=virtio-net-pci", "user,id=n", "mac=52:54:00:00:00:07"),
      ("tap,id=n,ifname=t0,vhost=on,iommu_platform=on", "tap,id=n,ifname=t0,vhost=on", "iommu_platform=on"),
      ("passt,id=n,mac=52:54:00:00:00:07,mtu=1400", "passt,id=n,mtu=1400", "mac=52:54:00:00:00:07"),
      (
        "stream,id=n,addr.type=unix,addr.path=/s,server=on,addr=5", "stream,id=n,addr.type=unix,addr.path=/s,server=on",
        "addr=5"
      ),
      (
        "dgram,local.type=inet,local.host=127.0.0.1,local.port=1,remote.type=inet,remote.host=127.0.0.1,remote.port=2,id=n",
        "dgram,local.type=inet,local.host=127.0.0.1,local.port=1,remote.type=inet,remote.host=127.0.0.1,remote.port=2,id=n",
        ""
      ),
    ])
  func sameAsTheLongForm(_ short: String, _ netdev: String, _ card: String) throws {
    let made = try machine(["-nic", short])
    let expected = try machine(["-netdev", netdev, "-device", "virtio-net-pci,netdev=n,\(card)"])
    #expect("\(made)" == "\(expected)")
    #expect(made.netdevs.count == 1 && made.devices.count == 1)
  }

  @Test("a -nic without id gives its netdev an id that no user can give, and its card none")
  func generatedIDs() throws {
    let made = try machine(["-nic", "user", "-netdev", "user,id=net1", "-device", "edu", "-nic", ""])
    let ids = made.netdevs.compactMap { $0.id?.text }
    #expect(ids == ["#net0", "net1", "#net2"])
    for id in ids where id.hasPrefix("#") { #expect(throws: ValueError.notIdentifier) { try Identifier(text: id) } }
    #expect(made.devices.map { $0.netdev?.id.text } == ["#net0", nil, "#net2"])
    #expect(made.devices.allSatisfy { $0.id == nil })
  }

  @Test("-nic refuses the types that -netdev refuses, and JSON", arguments: ["vde", #"{"type":"user"}"#])
  func unknownTypes(_ type: String) throws {
    let line = try #require(failure(["-kernel", "k", "-nic", type]))
    #expect(line.hasPrefix("nestling: -nic \(type): unknown netdev type; supported: "))
  }

  @Test("-nic none adds nothing, and takes no other card away")
  func none() throws {
    #expect("\(try machine(["-nic", "none"]))" == "\(try machine([]))")
    let made = try machine(["-nic", "none", "-nic", "user,id=n", "-nic", "none"])
    #expect(made.netdevs.count == 1 && made.devices.count == 1)
  }

  @Test("a property that -nic gives to the card is no property of a netdev, except passt's mac")
  func propertiesAreNotAmbiguous() {
    let shared = NetdevTypes.all.flatMap { type in
      type.propertyDescriptions.flatMap { [$0.name] + $0.aliases }
        .filter { (["type", "model"] + NicOption.cardProperties).contains($0) }
        .map { "\(type.typeName) \($0)" }
    }
    #expect(shared == ["passt mac"])
  }
}
