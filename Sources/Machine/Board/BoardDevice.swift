import Devices
import Hardware
import Linux
import PCI
import VTd

/// How each kind of device is built onto a board, from the options that `DeviceKinds` lists. A kind that the board
/// itself is made with (the IOMMU) builds nothing here.
protocol BoardDevice {
  /// Builds the device and plugs its functions. What fails leaves nothing but functions that were plugged, which the
  /// board takes off.
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) throws(StartError)
}

extension VirtioBlockOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) throws(StartError) {
    guard let place = device.place, let node = board.devices.blockNodes.first(where: { $0.id == drive }) else {
      return
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
      try board.plug(
        VirtioPCI(
          device: disk, options: options.transport, environment: board.environment(at: place), address: place.address),
        of: device)
    } catch let error as StartError {
      throw error
    } catch {
      throw .device(kind: Self.kindName, problem: "\(error)")
    }
  }
}

extension VirtioRNGOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) throws(StartError) {
    guard let place = device.place else { return }
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
    try board.plug(
      VirtioPCI(
        device: VirtioEntropy(source: source, limit: limit), options: virtio.transport,
        environment: board.environment(at: place), address: place.address), of: device)
  }
}

extension PCIERootPortOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) throws(StartError) {
    guard let place = device.place else { return }
    let model = RootPort(
      ExpressPort(portNumber: port, slotNumber: slot), reservation: reservation,
      environment: board.environment(at: place), address: place.address, routes: board.busRoutes)
    let name = id?.text
    try board.plug(model.function, of: device.identity) { [buses = board.buses] in
      if let name { buses.remove(name) }
      model.remove()
    }
    // The link is a bus by the port's id.
    if let name { board.buses.set(LiveBus(name: name, kind: .pci, isHotpluggable: false)) }
  }
}

extension DebugExitOptions: BoardDevice {
  func build(_ device: Device, on board: Board, with configuration: MachineConfiguration) {
    let events = board.events
    _ = board.ioBus.attach(
      DebugExit { events.post(.debugExit(status: $0)) }, at: UInt64(base), size: UInt64(size))
  }
}

extension Board {
  fileprivate func plug(_ model: VirtioPCI, of device: Device) throws(StartError) {
    try plug(model.function, of: device.identity) { model.remove() }
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
