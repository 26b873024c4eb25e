import Devices
import Hardware
import Linux
import PCI
import VTd

/// How each kind of device is built onto a board, from the options that `DeviceKinds` lists. A kind that the board
/// itself is made with (the IOMMU) builds nothing here.
protocol BoardDevice {
  /// Makes the device's functions, which the board then plugs. It may wait for the host. What fails leaves nothing.
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function]
}

extension VirtioBlockOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place, let node = board.devices.blockNodes.first(where: { $0.id == drive }) else {
      return []
    }
    var options = Devices.VirtioBlockOptions()
    options.queueCount = Int(queueCount ?? UInt16(clamping: min(configuration.processors.count, 256)))
    options.queueSize = Int(queueSize)
    options.serial = serial
    options.logicalBlockSize = Int(clamping: logicalBlockSize.bytes)
    options.discard = discard
    options.writeZeroes = writeZeroes
    options.transport = virtio.transport
    let file = try node.open(memory: board.memory)
    let backend = FileBackend(file, discardUnmaps: node.discardUnmaps)
    do {
      let disk = try VirtioBlock(options: options, backend: backend)
      let model = VirtioPCI(
        device: disk, options: options.transport, environment: board.environment(at: place), address: place.address)
      board.disks.add(node.id, backend, disk)
      return [model.function]
    } catch {
      throw .device(kind: Self.kindName, problem: "\(error)")
    }
  }
}

extension VirtioRNGOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let source: any Devices.EntropySource
    switch EntropySource(of: self, among: board.devices.objects) {
    case .host: source = HostEntropy()
    case .file(let path):
      do {
        source = try FileEntropy(opening: path)
      } catch {
        throw .file(option: "-object rng-random", error)
      }
    }
    var limit: EntropyLimit?
    if bytesPerPeriod != Self.unlimited {
      do {
        limit = EntropyLimit(bytes: bytesPerPeriod, period: period, timer: try board.clock.makeTimer())
      } catch {
        throw .system(error)
      }
    }
    let model = VirtioPCI(
      device: VirtioEntropy(source: source, limit: limit), options: virtio.transport,
      environment: board.environment(at: place), address: place.address)
    return [model.function]
  }
}

extension PCIERootPortOptions: BoardDevice {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place else { return [] }
    let model = RootPort(
      ExpressPort(portNumber: port, slotNumber: slot), hotplug: hotplug ? board.slots.way : nil,
      reservation: reservation, environment: board.environment(at: place), address: place.address,
      routes: board.busRoutes, onEject: { [slots = board.slots] in slots.ejected(below: place.address) },
      onRefusal: { [slots = board.slots] in slots.refused(below: place.address) },
      onSlotChange: hotplug ? board.slots.changeListener(of: place.address) : nil)
    if hotplug { board.slots.add(model) }
    let name = id?.text
    // The link is a bus by the port's id.
    if let name { board.buses.set(LiveBus(name: name, kind: .pci, isHotpluggable: hotplug)) }
    model.function.environment.onRelease { [buses = board.buses, slots = board.slots] in
      if let name { buses.remove(name) }
      slots.remove(model.function.requester.id)
    }
    return [model.function]
  }
}

extension DebugExitOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) -> [Function] {
    let events = board.events
    _ = board.ioBus.attach(
      DebugExit { events.post(.debugExit(status: $0)) }, at: UInt64(base), size: UInt64(size))
    return []
  }
}

extension VirtioPCIOptions {
  var transport: VirtioOptions {
    var options = VirtioOptions()
    options.iommuPlatform = accessPlatform
    options.eventIndex = eventIndex
    return options
  }
}

extension IntelIOMMUOptions {
  /// The unit's own options, from those of the command line.
  var unitOptions: UnitOptions {
    var options = UnitOptions()
    options.scalableMode = scalableMode
    options.firstStage = firstStage || nested
    options.nested = nested
    options.addressWidth = Int(addressWidth)
    options.interruptRemapping = offersInterruptRemapping
    options.extendedInterruptMode = offersExtendedInterrupts ? .on : .off
    options.cachingMode = cachingMode ?? false
    options.snoopControl = snoopControl
    options.deviceIOTLB = deviceIOTLB
    options.pasidBits = Int(pasidBits)
    options.svm = svm
    options.fs1gp = firstStage1GPages
    options.dmaTranslation = dmaTranslation
    options.staleTranslationMethod = staleTransientMapping
    return options
  }
}
