import Hardware
import Linux
import VFIO
import VTd

/// How a device of the host is built onto a board: found and opened, bound to its iommufd, judged, attached, shown on
/// the bus, and kept in step with the unit before it.
extension VFIOPCIOptions: BoardDevice {
  func build(on board: Board, at address: RequesterID?, with configuration: MachineConfiguration) throws(StartError) {
    guard let address else { return }
    let objects = configuration.objects.lazy.compactMap { $0 as? IOMMUFDOptions }
    guard let object = objects.first(where: { $0.id == iommufd }) else { return }
    let name: String
    do {
      name = try build(on: board, at: address, object)
    } catch {
      throw .passthrough(error)
    }
    _ = name
  }

  private func openHostDevice(_ calls: any SystemCalls) throws(PassthroughError) -> (file: KernelFile, name: String) {
    if let descriptor {
      return (KernelFile(owning: Int32(clamping: descriptor), calls: calls), hostName)
    }
    let found =
      if let host {
        try HostDevice.find(address: host)
      } else {
        try HostDevice.find(folder: sysfsFolder ?? "")
      }
    return (try found.open(calls: calls), found.address)
  }

  private func build(
    on board: Board, at address: RequesterID, _ object: IOMMUFDOptions
  ) throws(PassthroughError) -> String {
    let shared = board.passthrough
    let (file, name) = try openHostDevice(shared.calls)
    do throws(PassthroughError.Problem) {
      let memory = try shared.memory(of: object, ram: board.memory)
      let device = try Self.bind(file, to: memory.iommufd)
      let unit = board.unit(at: address)
      var hostOffersPageRequests = false
      if let unit {
        let information: HardwareInformation
        do {
          information = try memory.iommufd.hardwareInformation(device: device.id)
        } catch {
          throw .iommufd(error)
        }
        if let missing = HostRequirement.missing(for: unit.options, on: information) { throw .requirement(missing) }
        hostOffersPageRequests = information.vtd?.offersPageRequests == true
      }
      let bound = try Self.attach(device, memory, nests: unit?.options.firstStage == true) { notice in
        shared.tell(PassthroughNotice(device: name, notice))
      }
      let services = Services(of: bound, behind: unit, hostOffersPageRequests: hostOffersPageRequests)
      let model = try VFIOPCI(
        device, environment: board.environment(at: address), deviceMemory: board.deviceMemory, address: address,
        services: services.offered)
      let events = board.events
      do {
        try model.start { event in
          if event == .error { events.post(.pause) }
          shared.tell(PassthroughNotice(device: name, kind: event == .error ? .error : .request))
        }
      } catch {
        model.remove()
        throw .interrupts(error)
      }
      let pin = BoardLayout.pin(of: address, interruptPin: max(model.function.description.interruptPin, 1))
      let watch = board.interruptEnds.add(pin: pin) { [weak model] in model?.interruptEnded() }
      let bindings = unit.map { shared.bindings(of: $0) }
      if let refusal = services.refusal, model.hasPageRequests {
        shared.tell(PassthroughNotice(device: name, kind: .pageRequestsRefused(refusal)))
      }
      if let bindings, let requests = services.requests {
        model.servePageRequests(requests, of: device.id, bound, bindings)
      }
      bindings?.add(bound, for: model.function.requester)
      board.plug(model.function) {
        bindings?.remove(bound)
        board.interruptEnds.remove(watch)
        model.remove()
      }
    } catch {
      throw PassthroughError(name, error)
    }
    return name
  }

  private static func bind(_ file: KernelFile, to iommufd: IOMMUFD) throws(PassthroughError.Problem) -> VFIODevice {
    do {
      return try VFIODevice(file: file, to: iommufd)
    } catch {
      throw .bind(error)
    }
  }

  /// A device's translation services: what the guest is to see of them, where its page requests come from, and what
  /// the kernel said to that.
  private struct Services {
    var offered: TranslationServices = []
    var requests: HostPageRequests?
    var refusal: SystemError?

    init(of bound: HostBoundDevice, behind unit: TranslationUnit?, hostOffersPageRequests: Bool) {
      guard let unit, unit.options.deviceIOTLB else { return }
      offered.insert(.addressTranslation)
      guard unit.options.svm, hostOffersPageRequests else { return }
      do {
        requests = try bound.offerPageRequests()
        if requests != nil { offered.insert(.pageRequests) }
      } catch {
        refusal = error
      }
    }
  }

  private static func attach(
    _ device: VFIODevice, _ memory: PassthroughMemory, nests: Bool,
    tell: @escaping @Sendable (HostBoundDevice.Notice) -> Void
  ) throws(PassthroughError.Problem) -> HostBoundDevice {
    do {
      return try HostBoundDevice(device, memory: memory, nests: nests, tell: tell)
    } catch {
      throw .attach(error)
    }
  }
}

extension PassthroughNotice {
  fileprivate init(device: String, _ notice: HostBoundDevice.Notice) {
    self.device = device
    kind =
      switch notice {
      case .refused(let error): .hostRefused(error)
      case .pageRequestsRefused(let error): .pageRequestsRefused(error)
      case .blocked(.supervisorRequests): .supervisorRequests
      case .blocked: .guestSecondStage
      }
  }
}
