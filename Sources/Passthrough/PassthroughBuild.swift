import Glibc
import Hardware
import Linux
import PCI
import VFIO
import VTd

/// The way in which a machine's options name a device of the host.
public enum PassthroughSource {
  /// The address on the host: `0000:01:00.0`, or `01:00.0`.
  case address(String)
  /// The folder in sysfs.
  case folder(String)
  /// The open device file (`/dev/vfio/devices/vfioN`), and the device's name in messages.
  case file(KernelFile, name: String)
}

extension PassthroughObjects {
  /// Makes the function of a host device: finds and opens the device, binds it to its iommufd object, checks what the
  /// host offers, attaches it to the guest's memory, and connects it to its unit. May block on the host.
  /// - Parameters:
  ///   - romFile: the file that the guest sees as the expansion ROM; nil for the device's own ROM, empty for none.
  ///   - choices: the user's choices about the capabilities that the guest sees.
  ///   - iommufd: the id of the iommufd object.
  ///   - iommufdFile: returns the open `/dev/iommu` that the object's options name; nil to open `/dev/iommu`. Called
  ///     only for the first device of the object.
  ///   - address: the function's address on the guest's bus.
  ///   - unit: the unit that translates for the function; nil if none does.
  ///   - onEvent: called on the thread that waits for the device's events, which ends with the device. Must not wait.
  /// - Returns: the function, which the caller adds to its bus, and the handler of the guest's EOI of a level-triggered
  ///   interrupt of the pin that INTx is wired to. The handler does not hold the device.
  /// - Throws: the reason why the device is not passed through. After an error, nothing of the device remains.
  public func build(
    _ source: PassthroughSource, romFile: String?, choices: CapabilityChoices, iommufd: String,
    iommufdFile: () -> KernelFile?, for machine: any PassthroughMachine, at address: RequesterID,
    in environment: PCIEnvironment, behind unit: RemappingUnit?,
    onEvent: @escaping @Sendable (PassthroughEvent) -> Void
  ) throws(PassthroughError) -> (function: Function, interruptEnded: @Sendable () -> Void) {
    let (file, found, name) = try open(source)
    let notify: @Sendable (PassthroughNotice.Reason) -> Void = { [self] reason in
      report(PassthroughNotice(device: name, reason: reason))
    }
    do throws(PassthroughError.Problem) {
      let rom = try romSource(romFile)
      let nests = unit?.options.firstStage == true
      let group = try groups.join(found?.group, as: found?.address ?? name, iommufd: iommufd, nests: nests)
      let memory = try memory(of: iommufd, file: iommufdFile, ram: machine.memory)
      let registration = try machine.hostDeviceFiles.map { (registry) throws(PassthroughError.Problem) in
        try HostDeviceRegistration(file, with: registry)
      }
      let device = try bind(file, found, to: memory.iommufd)
      var pasidWidth = 0
      var host: HardwareInformation?
      if let unit {
        let information: HardwareInformation
        do {
          information = try memory.iommufd.hardwareInformation(device: device.id)
        } catch {
          throw .iommufd(error)
        }
        if let missing = HostRequirement.missing(for: unit.options, on: information) { throw .requirement(missing) }
        if nests { pasidWidth = min(information.pasidWidth, unit.options.pasidBits) }
        host = information
      }
      if choices.addressTranslation == true, let problem = OfferedServices.problem(behind: unit, on: host) {
        throw .addressTranslation(problem)
      }
      let bound: HostBoundDevice
      do {
        bound = try HostBoundDevice(device, memory: memory, nests: nests, pasidWidth: pasidWidth, group: group) {
          notify(.init($0))
        }
      } catch {
        throw problem(of: error, ram: machine.memory) ?? .attach(error)
      }
      let services = OfferedServices(of: bound, behind: unit, on: host, choices)
      let model = try VFIOPCI(
        device, environment: environment,
        surroundings: .init(
          deviceMemory: machine.deviceMemory, memory: memory, registration: registration, group: group, name: name,
          guestRuns: areBusesReset, report: notify),
        rom: rom, address: address, services: services.offered, pasids: services.pasids,
        needsATS: choices.addressTranslation == true)
      do {
        try model.start { event in
          onEvent(event)
          notify(event == .error ? .error : .request)
        }
      } catch {
        model.function.revoke()
        throw .interrupts(error)
      }
      let bindings = unit.map { self.bindings(of: $0) }
      if let refusal = bound.pasidRefusal { notify(.pasidsRefused(refusal)) }
      if model.space.pasidProblem == .noRoom { notify(.noRoomForPASIDs) }
      if let refusal = services.refusal, model.hasPageRequests { notify(.pageRequestsRefused(refusal)) }
      if let bindings, let requests = services.requests {
        model.servePageRequests(requests, of: device.id, bound, bindings)
      }
      if let bindings {
        bindings.add(bound, for: model.function.requester, pasidEnable: model.isPASIDEnabled)
        model.onPASIDControl = { [weak bindings, weak bound, weak model] in
          guard let bindings, let bound, let model else { return }
          bindings.setPASIDEnable(of: bound) { model.isPASIDEnabled }
        }
      }
      // While the device can reach memory, the guest's invalidations must reach the host. So forwarding stops at the
      // release, after the device's requests have ended.
      model.function.environment.onRelease { [weak model] in
        bindings?.remove(bound)
        model?.detach()
      }
      return (model.function, { [weak model] in model?.interruptEnded() })
    } catch {
      throw PassthroughError(name, error)
    }
  }

  private func open(
    _ source: PassthroughSource
  ) throws(PassthroughError) -> (file: KernelFile, found: HostDevice?, name: String) {
    let found: HostDevice
    switch source {
    case .file(let file, let name): return (file, HostDevice.find(of: file, sysfs: sysfs), name)
    case .address(let address): found = try HostDevice.find(address: address, sysfs: sysfs)
    case .folder(let folder): found = try HostDevice.find(folder: folder)
    }
    return (try found.open(calls: calls), found, found.address)
  }

  private func romSource(_ path: String?) throws(PassthroughError.Problem) -> ExpansionROM.Source {
    guard let path else { return .device }
    if path.isEmpty { return .nowhere }
    let content: [UInt8]
    do {
      content = try ExpansionROM.content(ofFile: path)
    } catch {
      throw .romFile(path, error)
    }
    guard (1...ExpansionROM.limit).contains(content.count) else { throw .romFileSize(path, limit: ExpansionROM.limit) }
    return .file(content)
  }

  private func bind(
    _ file: KernelFile, _ found: HostDevice?, to iommufd: IOMMUFD
  ) throws(PassthroughError.Problem) -> VFIODevice {
    do {
      return try VFIODevice(file: file, to: iommufd)
    } catch {
      // The group has another owner (iommu_device_claim_dma_owner): often the kernel, for one of its drivers.
      if error.code == EPERM || error.code == EBUSY, let sibling = found?.sibling(withDriverIn: sysfs) {
        throw .groupHasDriver(sibling: sibling.address, driver: sibling.driver)
      }
      throw .bind(error)
    }
  }
}

/// A device's translation services: those that the guest sees, the source of the page requests, and the kernel's error
/// if the kernel refused page requests.
private struct OfferedServices {
  var offered: TranslationServices = []
  var pasids: OfferedPASIDs?
  var requests: HostPageRequests?
  var refusal: SystemError?

  /// - Parameter host: what the host's IOMMU offers for the device; nil without a unit.
  init(
    of bound: HostBoundDevice, behind unit: RemappingUnit?, on host: HardwareInformation?, _ choices: CapabilityChoices
  ) {
    guard let unit, let host else { return }
    if unit.options.firstStage {
      var features: ProcessAddressSpaceControl = []
      if host.capabilities.contains(.pasidExecute) { features.insert(.executePermission) }
      if host.capabilities.contains(.pasidPrivileged) { features.insert(.privilegedMode) }
      pasids = OfferedPASIDs(
        width: bound.pasidWidth, features: features, offset: choices.pasidOffset)
    }
    guard choices.addressTranslation != false, Self.problem(behind: unit, on: host) == nil else { return }
    offered.insert(.addressTranslation)
    guard unit.options.svm, host.vtd?.offersPageRequests == true else { return }
    do {
      requests = try bound.offerPageRequests()
      if requests != nil { offered.insert(.pageRequests) }
    } catch {
      refusal = error
    }
  }

  /// Returns the reason why the unit or the host has no ATS for a device; nil if they have.
  static func problem(behind unit: RemappingUnit?, on host: HardwareInformation?) -> AddressTranslationProblem? {
    guard let unit, let host, unit.options.deviceIOTLB else { return .unit }
    return host.capabilities.contains(.lacksATS) || host.vtd?.offersDeviceTLBs == false ? .host : nil
  }
}
