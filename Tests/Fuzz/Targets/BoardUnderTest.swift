import Devices
import Hardware
import PCI
import TestSupport
import VTd
import VTdOracle

/// One device, of a type that the input selects, on bus 0 behind a unit, with all ways in which a guest reaches it: the
/// memory bus, the I/O ports and both mechanisms of configuration space.
final class BoardUnderTest {
  /// The address of the device's first BAR; the others follow.
  static let window: UInt64 = 0xc000_0000

  let memory = HeapMemory(size: FuzzMemory.size)
  let memoryBus = AddressBus()
  let ioBus = AddressBus()
  let workers = FuzzWorkers()
  let timer = FuzzTimer()
  let unit: RemappingUnit
  let bus = Bus(number: 0)
  let function: Function
  private(set) var bases: [UInt64] = []
  private let remove: () -> Void
  /// Regions on the memory bus and the I/O bus. They must be detached, because the configuration mechanisms refer to
  /// the functions, and the functions refer to the buses.
  private var attachments: [(bus: AddressBus, attachment: AddressBus.Attachment)] = []

  private static let types: [@Sendable (Parts, inout FuzzInput) -> (Function, () -> Void)] = [
    { parts, input in
      var options = VirtioBlockParameters()
      let form = input.byte()
      options.queueCount = 1 + UInt16(form & 3)
      options.queueSize = form & 4 == 0 ? 8 : 256
      options.transport.iommuPlatform = form & 8 != 0
      options.transport.eventIndex = form & 16 == 0
      options.serial = "fuzz"
      if form & 32 != 0 { options.logicalBlockSize = 4096 }
      // The options are within their ranges, so this cannot fail.
      let disk = try? VirtioBlock(
        options: options, backend: FuzzDisk(memory: parts.memory, isReadOnly: form & 64 != 0))
      guard let disk else { preconditionFailure("options in range are refused") }
      return parts.virtio(disk, options.transport)
    },
    { parts, input in
      var options = VirtioOptions()
      options.iommuPlatform = input.byte() & 1 != 0
      return parts.virtio(VirtioEntropy(source: FuzzEntropy()), options)
    },
    { parts, input in
      let mask: UInt64 = input.byte() & 1 == 0 ? .max : 0xfff_ffff
      let edu = Edu(mask: mask, environment: parts.environment, address: parts.address)
      return (edu.function, { edu.function.revoke() })
    },
    { parts, _ in
      let device = IOMMUTestDevice(environment: parts.environment, address: parts.address)
      return (device.function, { device.function.revoke() })
    },
    { parts, _ in
      let device = DMAEngine(environment: parts.environment, address: parts.address)
      return (device.function, { device.function.revoke() })
    },
    { parts, input in
      var parameters = VirtioNetParameters()
      let form = input.byte()
      // VIRTIO_NET_F_MQ
      parameters[VirtioFeatures(bit: 22)] = form & 1 != 0
      parameters.transport.iommuPlatform = form & 2 != 0
      parameters.transport.eventIndex = form & 4 == 0
      let all = NetworkOffloads(rawValue: 0x7f)
      let network = FuzzNetwork(
        NetworkCapabilities(sends: all, receives: all, pairs: 1 + Int(form >> 7)), memory: parts.memory)
      // The options are within their ranges, so this cannot fail.
      guard let net = try? VirtioNet(parameters: parameters, backend: network) else {
        preconditionFailure("options in range are refused")
      }
      let (function, remove) = parts.virtio(net, parameters.transport)
      return (
        function,
        {
          remove()
          precondition(network.finding == nil, network.finding?.text ?? "")
        }
      )
    },
  ]

  private struct Parts {
    let memory: HeapMemory
    let environment: PCIEnvironment
    let address = RequesterID(bus: 0, device: 3, function: 0)

    func virtio(_ device: any VirtioDevice, _ options: VirtioOptions) -> (Function, () -> Void) {
      let device = VirtioPCI(device: device, options: options, environment: environment, address: address)
      return (device.function, { device.function.revoke() })
    }
  }

  init(_ input: inout FuzzInput) throws(Finding) {
    let router = RecordingRouter()
    let requester = Requester(id: RequesterID(rawValue: 0xfff0))
    do {
      unit = try RemappingUnit(
        options: UnitOptions(&input), memory: memory, faultEvent: router.makeRoute(for: requester),
        invalidationEvent: router.makeRoute(for: requester), pageRequestEvent: router.makeRoute(for: requester),
        messages: RecordingSink(), parking: FuzzParking(), deviceTimer: timer)
    } catch {
      throw Finding(text: "valid options are refused: \(error)")
    }
    let environment = PCIEnvironment(
      memoryBus: memoryBus, ioBus: ioBus, memory: memory, remapper: unit, interrupts: router, workers: workers,
      makeParking: { FuzzParking() })
    (function, remove) = Self.types[input.choice(Self.types.count)](
      Parts(memory: memory, environment: environment), &input)
    function.connect(interruptLine: RecordingLine())
    try? bus.add(function)
    let target = ConfigurationTarget(root: bus)
    attach(unit, to: memoryBus, at: 0xfed9_0000, size: 0x1000)
    attach(
      EnhancedConfigurationAccess(target: target), to: memoryBus, at: 0xb000_0000,
      size: EnhancedConfigurationAccess.size)
    attach(PortConfigurationAccess(target: target), to: ioBus, at: 0xcf8, size: 8)
    for bar in function.description.baseAddressRegisters {
      let base = Self.window + UInt64(bases.count) << 24
      function.place(bar, at: base)
      bases.append(base)
    }
    function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x7)
  }

  private func attach(_ device: any BusDevice, to bus: AddressBus, at base: UInt64, size: UInt64) {
    attachments.append((bus, bus.attach(device, at: base, size: size)))
  }

  func write(_ address: UInt64, _ width: AccessWidth, _ value: UInt64) {
    memoryBus.write(address: address, width: width, value: value & width.allOnes)
  }

  func read(_ address: UInt64, _ width: AccessWidth) throws(Finding) {
    guard let value = memoryBus.read(address: address, width: width) else { return }
    try Finding.unless(value <= width.allOnes, "\(value) read as \(width)")
  }

  /// Unplugs the device, and checks that it no longer answers and that pending work does no harm.
  func unplug() throws(Finding) {
    for (bus, attachment) in attachments { bus.detach(attachment) }
    remove()
    workers.run()
    for base in bases {
      try Finding.unless(memoryBus.read(address: base, width: .doubleword) == nil, "removed, but answers at \(base)")
    }
    try Finding.unless(!function.requester.busMasterEnable, "a removed device has bus mastering enabled")
  }
}
