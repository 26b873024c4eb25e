import Devices
import Hardware
import Linux
import PCI
import VhostUser

/// A device type whose back end is another process, behind a chardev.
protocol VhostUserOptions: PCIDeviceOptions, BoardDevice {
  var transport: VirtioOptions { get }
  /// Needs from the back end: queues, configuration, protocol features.
  func profile(processors: Int, usesTranslation: Bool) -> DeviceProfile
  func kind(processors: Int) -> VhostUserVirtio.Kind
}

extension VhostUserOptions {
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    guard let place = device.place, let id = chardev else { return [] }
    func problem(_ reason: VhostUserProblem.Reason) -> StartError {
      .vhostUser(VhostUserProblem(typeName: Self.typeName, reason: reason))
    }
    guard let regions = MemoryRegion.regions(of: board.memory) else { throw problem(.privateMemory) }
    guard let chardevs = board.chardevs else { throw .chardev(.notFound(id)) }
    let chardev = try chardevs.device(id)
    let (dialer, loop) = try mapError(try chardev.handOver()) { (error: Chardev.HandOverError) -> StartError in
      switch error {
      case .chardev(let problem): .chardev(problem)
      case .system(let error): .system(error)
      }
    }
    let count = configuration.processors.count
    let environment = board.environment(at: place)
    // Without a unit above it, the device's addresses are guest physical in any case.
    let usesTranslation = transport.iommuPlatform && !(environment.remapper is DirectRemapper)
    var profile = profile(processors: count, usesTranslation: usesTranslation)
    profile.memory = regions
    let session = VhostUserSession(profile, dialer: dialer, on: loop)
    session.connect()
    let backEnd: BackEnd
    do throws(VhostUserError) {
      backEnd = try session.waitUntilConnected()
    } catch {
      session.end()
      chardev.takeBack()
      if case .lacksFeatures(let missing) = error, VirtioFeatures(rawValue: missing).contains(.accessPlatform) {
        throw problem(.noTranslation)
      }
      throw problem(.backEnd(error))
    }
    let virtio = VhostUserVirtio(
      kind(processors: count), session: session, backEnd: backEnd, memory: board.memory,
      usesTranslation: usesTranslation,
      onConnection: { [weak chardev] in chardev?.setForeignPeer($0) })
    chardev.setForeignPeer(true)
    session.setDevice(virtio)
    let options = transport.limited(to: backEnd)
    session.require(virtio.features.union(options.ringFeatures).rawValue)
    let model = VirtioPCI(
      device: virtio, options: options, environment: environment, address: place.address)
    model.function.environment.onRelease {
      session.end()
      chardev.takeBack()
    }
    return [model.function]
  }
}

extension VirtioOptions {
  /// The features of the rings, which the back end must have.
  var ringFeatures: VirtioFeatures {
    var features: VirtioFeatures = [.version1]
    if eventIndex { features.insert(.eventIndex) }
    if indirectDescriptors { features.insert(.indirectDescriptors) }
    return features
  }

  /// Switches off what the back end lacks.
  func limited(to backEnd: BackEnd) -> VirtioOptions {
    let offered = VirtioFeatures(rawValue: backEnd.features)
    var options = self
    options.eventIndex = eventIndex && offered.contains(.eventIndex)
    options.indirectDescriptors = indirectDescriptors && offered.contains(.indirectDescriptors)
    return options
  }
}
