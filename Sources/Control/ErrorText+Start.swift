import Machine
import VTd

/// Texts for machines that do not start or cannot continue.
extension ErrorText {
  static func line(for error: StartError) -> String { line([], text(for: error)) }

  /// Returns the text for the end of a machine that failed; nil for another end.
  static func text(for ending: RunningMachine.Ending) -> String? {
    switch ending {
    case .shutdown, .quit, .debugExit: nil
    case .crashed(let crash): text(for: crash)
    case .failed(let error, let isReset): (isReset ? "reset: " : "") + text(for: error)
    }
  }

  static func text(for error: StartError) -> String {
    switch error {
    case .configuration(let error): text(for: error)
    case .refused(let problem): text(for: problem)
    case .kvm(_, let error): "-accel kvm: \(text(for: error))"
    case .memory(let size, let error): "-m: \(size >> 20) MiB of RAM: \(reason(of: error))"
    case .addressSpace(let size, let width):
      "-m: \(size >> 20) MiB of RAM do not fit in the \(width) address bits that guests have on this host"
    case .file(let option, let error): "\(option): \(text(for: error))"
    case .netdev(let typeName, let id, let error): "-netdev \(typeName),id=\(id?.text ?? ""): \(text(for: error))"
    // `Failed to get … lock` is QEMU's text.
    case .imageInUse(let path, .notGranted(let permission)): imageInUse(path, "\"\(permission.name)\"")
    case .imageInUse(let path, .notShared(let permission)): imageInUse(path, "shared \"\(permission.name)\"")
    case .imageInUse(let path, .unavailable), .imageInUse(let path, .system): imageInUse(path, "any")
    case .boot(let error): text(for: error)
    case .unit(let error): "-device intel-iommu: \(text(for: error))"
    case .chardev(let problem): text(for: problem)
    case .tables(let error): text(for: error)
    case .disk(let problem): "-device virtio-blk-pci: \(problem.rawValue) is out of range"
    case .network(let problem): "-device virtio-net-pci: \(problem.rawValue) is out of range"
    case .netdevGone(let use): "\(use.property): the netdev \(quoted(use.id.text)) is gone"
    case .addressInUse(let address): "\(address) has a function already"
    case .portsInUse(let first, let count):
      "-device isa-debug-exit: iobase=0x\(String(first, radix: 16)),iosize=\(count): ports are in use"
    case .ended: "the machine ends"
    case .passthrough(let error): "-device vfio-pci: \(error.device): \(text(for: error))"
    case .vhostUser(let problem): "-device \(problem.typeName): \(text(for: problem.reason))"
    case .placement(let room):
      if let bar = room.bar {
        "no room is left for BAR \(bar) of \(room.address), which has \(room.size) bytes"
      } else {
        "no room is left for a window of \(room.size) bytes, which the port \(room.address) needs"
      }
    case .window(let problem):
      "BAR \(problem.bar) of \(problem.size) bytes does not fit in the windows of the port at \(problem.port)"
    case .system(let error): text(for: error)
    }
  }

  private static func text(for crash: GuestCrash) -> String {
    switch crash {
    case .internalError(let suberror, let processor, let instructionPointer):
      "CPU \(processor): KVM internal error \(suberror) at 0x"
        + (instructionPointer.map { String($0, radix: 16) } ?? "?")
    case .entryFailed(let reason, let processor): "CPU \(processor): KVM could not enter the guest, reason \(reason)"
    case .unknownExit(let reason, let processor): "CPU \(processor): unknown KVM exit \(reason)"
    case .kvm(let error): text(for: error)
    }
  }

  private static func text(for error: StartError.KVMError) -> String {
    switch error {
    case .call(let error): text(for: error)
    case .version(let version): "KVM's API version is \(version), but must be 12"
    case .missingCapability(let name): "this kernel's KVM lacks \(name)"
    case .tooManyProcessors(let asked, let most): "\(asked) CPUs requested, but KVM here supports at most \(most)"
    }
  }

  private static func text(for error: ACPIError) -> String {
    switch error {
    case .tooLarge(let size, let room):
      "the ACPI tables need \(size) bytes and have room for \(room): too many CPUs or devices"
    case .structureTooLong(let length): "an ACPI structure of \(length) bytes is too long for its length field"
    case .hostAddressWidthInvalid(let width): "a host address width of \(width) bits does not fit in the DMAR table"
    }
  }

  private static func imageInUse(_ path: String, _ lock: String) -> String {
    "-drive: \(path): Failed to get \(lock) lock: is the image in use, by another process or option?"
  }

  static func text(for error: NetdevOpenError) -> String {
    switch error {
    case .system(let error): text(for: error)
    case .notInstalled(let name): "there is no program \(quoted(name)) in PATH: install the package passt"
    case .program(let name, let error): "could not start \(quoted(name)): \(reason(of: error))"
    case .ended(let failure): text(for: failure)
    case .differentInterfaces(let one, let other): "fds belong to two interfaces, \(quoted(one)) and \(quoted(other))"
    case .tap(.noDevice(let error)): "could not open \(error.operand): \(reason(of: error)): load the module tun"
    case .tap(.notPermitted(let error)):
      "could not open the interface: \(reason(of: error)): "
        + "it needs CAP_NET_ADMIN and /dev/net/tun, or an interface of this user"
    case .tap(.busy(let name)): "the interface \(quoted(name)) is in use"
    case .tap(.noMultiQueue): "the host's kernel has no tap interfaces with several queues"
    case .tap(.mismatch(let name)):
      "the interface \(quoted(name)) exists, and is not a tap interface with as many queues as queues= asks for"
    case .tap(.badName(let name)): "\(quoted(name)) is not the name of a tap interface"
    case .tap(.notATap): "fd is not a tap interface"
    case .tap(.wrongFormat(let name)): "the interface \(quoted(name)) needs the flags IFF_VNET_HDR and IFF_NO_PI"
    case .tap(.failed(let error)): text(for: error)
    case .vhost(.noDevice(let error)):
      "could not open \(error.operand): \(reason(of: error)): load the module vhost_net"
    case .vhost(.notPermitted(let error)):
      "could not open \(error.operand): \(reason(of: error)): vhost=on needs that file"
    case .vhost(.notVhost): "vhostfd is not an open file of /dev/vhost-net"
    case .vhost(.busy): "vhostfd belongs to another process"
    case .vhost(.failed(let error)): text(for: error)
    case .chardev(let problem): text(for: problem)
    case .vhostUser(let reason): text(for: reason)
    case .vhostFileCount(let count, let queues): "vhostfds has \(count) files, but the interface has \(queues) queues"
    }
  }

  static func text(for failure: ProgramFailure) -> String {
    let end =
      switch failure.end {
      case .exited(let status): "with status \(status)"
      case .killed(let signal): "by signal \(signal)"
      }
    return "\(failure.program) ended \(end)" + (failure.reason.map { ": " + shortened($0) } ?? "")
  }

  /// Returns QEMU's text if QEMU has the option.
  static func text(for error: UnitOptionError) -> String {
    switch (error.problem, error.option) {
    case (.needsScalableMode, "pasid-bits"): "Need to set scalable mode for PASID"
    case (.needsScalableMode, let option): "\(option) is only available in scalable mode"
    case (.needsFirstStage, "svm"): "Need to set flts for svm"
    case (.needsFirstStage, let option): "\(option) needs x-flts=on"
    case (.needsInterruptRemapping, let option): "\(option)=on cannot be selected without intremap=on"
    case (.needsDeviceIOTLB, "svm"): "Need to set device IOTLB for svm"
    case (.needsDeviceIOTLB, let option): "\(option) needs device-iotlb=on"
    case (.needsPASIDs, let option): "Need to set PASID support for \(option)"
    case (.neededByScalableMode, _): "Need to set dma_drain for scalable mode"
    case (.neededByFirstStage, let option): "\(option)=off cannot be selected with x-flts=on"
    case (.addressWidth(let offered, let isScalable, let isFirstStage), let option):
      (isScalable ? "Scalable mode(x-flts=\(isFirstStage ? "on" : "off"))" : "Legacy mode")
        + ": supported values for \(option) are: " + offered.map(String.init).joined(separator: ", ")
    case (.pasidBits(let offered), let option):
      "\(option) must be between \(offered.lowerBound) and \(offered.upperBound)"
    }
  }
}
