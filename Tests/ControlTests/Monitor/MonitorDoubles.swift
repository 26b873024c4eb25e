import Hardware
import JSON
import Linux
import PCI
import Synchronization

@testable import Control
@testable import Machine

/// A machine that carries out nothing and records the requests.
final class RecordingMachine: MonitorTarget, MachineControl {
  private let asked = Mutex<[String]>([])
  private let current = Mutex(MachineStatus.running)
  private let measured = Mutex<[ExitSummary]>([])
  let configuration: MachineConfiguration
  let descriptors = MonitorDescriptors()

  init(_ configuration: MachineConfiguration = MachineConfiguration()) { self.configuration = configuration }

  var requests: [String] { asked.withLock { $0 } }
  private func ask(_ what: String) { asked.withLock { $0.append(what) } }

  var control: any MachineControl { self }
  var status: MachineStatus { current.withLock { $0 } }
  func requestReset() { ask("reset") }
  func requestQuit(_ cause: MachineCause) { ask("quit") }
  func requestPowerDown() { ask("power down") }
  func ask(_ request: MachineRequest, _ answer: @escaping @Sendable (RequestError?) -> Void) {
    switch request {
    case .pause: current.withLock { $0 = .paused }
    case .resume:
      if status == .internalError { return answer(.needsReset) }
      current.withLock { $0 = .running }
    case .addDevice(let description):
      do {
        try ask("add \(description.options())")
      } catch {
        return answer(.property(typeName: description.type.typeName, error))
      }
    case .removeDevice(let name, _):
      if name == "nosuch" { return answer(.noSuchDevice(name)) }
      ask("remove \(name)")
    case .addNode(let node): ask("add \(node)")
    case .removeNode(let id): ask("remove node \(id)")
    case .addObject(let object): ask("add \(object)")
    case .removeObject(let id): ask("remove object \(id)")
    case .resizeNode(let id, let size):
      if id == "r" { return answer(.readOnlyNode(id)) }
      ask("resize \(id) to \(size)")
    case .addNetdev(let options): ask("add \(options)")
    case .removeNetdev(let name):
      if name == "nix" { return answer(.backend(.noSuchNetdev(name))) }
      ask("remove netdev \(name)")
    case .setLink(let name, let isUp):
      if name == "nix" { return answer(.noSuchDevice(name)) }
      ask("link \(name) up: \(isUp)")
    case .setRebootAction(let action): ask("reboot is \(action)")
    }
    answer(nil)
  }
  func addListener(_ listener: @escaping @Sendable (MachineNotice) -> Void) {}

  /// Sets the state after a device error.
  func fail() { current.withLock { $0 = .internalError } }

  var functions: [MachineInspection.Function] {
    var description = FunctionDescription(vendorID: 0x1234, deviceID: 0x11e8, classCode: 0x00ff00)
    description.interruptPin = 1
    let register = BaseAddressRegister(index: 0, space: .memory32, size: 0x10_0000)
    var port = FunctionDescription(vendorID: 0x1b36, deviceID: 0x000c, classCode: 0x060400)
    port.isBridge = true
    var space = ConfigurationSpace()
    space.set(0x18, UInt32(0x0002_0100))
    space.set(0x20, UInt32(0xc010_c010))
    space.set(0x24, UInt32(0x0001_fff1))
    let below = MachineInspection.Function(
      address: RequesterID(bus: 1, device: 0, function: 0), id: "e1", description: description, regions: [],
      interruptLine: 20)
    return [
      MachineInspection.Function(
        address: RequesterID(bus: 0, device: 2, function: 0), id: "e0", description: description,
        regions: [MachineInspection.Function.Region(register: register, address: 0xc000_0000)], interruptLine: 11),
      MachineInspection.Function(
        address: RequesterID(bus: 0, device: 4, function: 0), id: "rp0", description: port, regions: [],
        interruptLine: 0, bridge: .init(header: BridgeHeader(space), functions: [below])),
    ]
  }
  var chardevs: [MachineInspection.ChardevState] {
    [MachineInspection.ChardevState(id: "c0", name: "unix:/tmp/s,server=on", hasFrontend: true)]
  }
  var devices: [Device] {
    let tree = DeviceTree()
    var edu = EduOptions()
    edu.id = try? Identifier(text: "e0")
    edu.mask = 4095
    for options in [edu, EduOptions()] {
      if let device = try? tree.admit(options) { tree.finishBuilding(device.identity) }
    }
    return tree.all
  }
  var objects: [any ObjectOptions] {
    var random = RNGRandomOptions()
    random.id = try? Identifier(text: "rng0")
    return [random]
  }
  var blockNodes: [MachineInspection.BlockState] {
    [
      MachineInspection.BlockState(
        node: BlockNode(id: "f", path: "/a.img", driver: .file), size: 4096, users: []),
      MachineInspection.BlockState(
        node: BlockNode(id: "r", path: "/a.img", readOnly: true, underlying: "f"), size: 4096,
        users: ["/machine/peripheral/d0"]),
    ]
  }
  func files(removedBy request: MachineRequest) -> [PassedFile] { [] }
  func addChardev(_ options: any ChardevOptions, id: Identifier) throws(Chardevs.Problem) {
    if id.text == "c0" { throw .duplicateID(id) }
    ask("add \(id): \(options)")
  }
  func removeChardev(_ name: String) throws(Chardevs.Problem) {
    if name == "c0" { throw .inUse(name) }
    ask("remove chardev \(name)")
  }
  var freeNetdevs: [MachineInspection.NetdevState] {
    [
      .init(
        id: "n0", typeName: "stream",
        status: .failed(SystemError("connect", "/tmp/s", code: 2)),
        isLinkUp: false),
      .init(id: "n1", typeName: "stream", status: .listening, isLinkUp: false),
    ]
  }
  var networkCards: [MachineInspection.NetworkCard] {
    [
      .init(
        name: "d0", typeName: "virtio-net-pci", address: "52:54:00:12:34:56", isLinkUp: true,
        netdev: .init(
          id: "n2", typeName: "stream", status: .connected(.inet(host: "127.0.0.1", port: 1234)), isLinkUp: true)),
      .init(
        name: "virtio-net-pci.0", typeName: "virtio-net-pci", address: "52:54:00:12:34:57", isLinkUp: false,
        netdev: nil),
    ]
  }
  var addressSpaces: [MachineInspection.AddressSpace] {
    typealias Region = MachineInspection.AddressSpace.Region
    return [
      MachineInspection.AddressSpace(
        name: "memory", rootName: "system", last: .max,
        regions: [
          Region(first: 0, last: 0x3ff_ffff, name: "ram-below-4g", isRAM: true, isMovable: false),
          Region(first: 0xc000_0000, last: 0xc00f_ffff, name: "edu 00:02.0 BAR0", isRAM: false, isMovable: true),
          Region(first: 0xfec0_0000, last: 0xfec0_0fff, name: "ioapic", isRAM: false, isMovable: false),
        ]),
      MachineInspection.AddressSpace(
        name: "I/O", rootName: "io", last: 0xffff,
        regions: [Region(first: 0x70, last: 0x71, name: "rtc", isRAM: false, isMovable: false)]),
    ]
  }
  var processorThreads: [Int] { [4711] }
  var exitSummaries: [ExitSummary] { measured.withLock { $0 } }
  func measureExits(_ isOn: Bool) {
    ask("measure exits: \(isOn)")
    var summary = ExitSummary()
    summary.count = 4
    summary.total = 44_000
    summary.longest = .init(time: 30_000, cause: .port(0x64, written: nil))
    summary.longestUndisturbed = .init(time: 9_000, cause: .port(0xcc8, written: 1))
    measured.withLock { $0 = isOn ? [summary] : [] }
  }
  func remappingText() -> String { "iommu0: as it is\n" }
  func translationText(_ arguments: [String]) -> String { "translated \(arguments.joined(separator: " "))\n" }
}

/// A QMP client that sends requests to a session and gets the answers as lines.
struct QMPClient {
  private var session: QMPSession
  let machine: RecordingMachine
  private(set) var isNegotiated = false

  init(_ machine: RecordingMachine = RecordingMachine(), pretty: Bool = false, negotiate: Bool = true) {
    session = QMPSession(pretty: pretty)
    self.machine = machine
    if negotiate { _ = send(#"{"execute": "qmp_capabilities"}"#) }
  }

  var greeting: String { String(decoding: session.greeting, as: UTF8.self) }

  /// Sends text to the session.
  /// - Returns: The lines of the answer.
  mutating func send(_ text: String) -> [String] { send(Array(text.utf8)) }

  mutating func send(_ bytes: [UInt8]) -> [String] {
    var answer = ""
    session.receive(bytes, on: machine) { output in
      switch output {
      case .send(let bytes): answer += String(decoding: bytes, as: UTF8.self)
      case .negotiated(let bytes):
        answer += String(decoding: bytes, as: UTF8.self)
        isNegotiated = true
      case .perform(let action): action()
      }
      return true
    }
    return answer.split(separator: "\r\n").map(String.init)
  }

  /// Returns a command's return value, or nil for an error.
  mutating func ask(_ name: String, _ arguments: JSONObject? = nil) -> JSONValue? {
    var request: JSONObject = ["execute": .string(name)]
    request["arguments"] = arguments.map { .object($0) }
    guard let line = send(JSONValue.object(request).text()).last,
      case .object(let object)? = try? JSONValue(parsing: Array(line.utf8))
    else { return nil }
    return object["return"]
  }
}
