import CLinux
import Glibc
import Linux

/// /dev/kvm: what this host's KVM can do, and the source of virtual machines.
public final class KVMSystem: Sendable {
  let file: FileDescriptor
  /// Bytes of the page run that each vCPU shares with the kernel.
  let runSize: Int

  public init(path: String = "/dev/kvm") throws(KVMError) {
    do {
      file = try FileDescriptor(opening: path, O_RDWR)
    } catch {
      throw .call(error)
    }
    let version = nestling_ioctl_value(file.rawValue, KVM_GET_API_VERSION, 0)
    if version < 0 { throw .call(SystemError("KVM_GET_API_VERSION", path, code: -version)) }
    if version != Int32(KVM_API_VERSION) { throw .version(version) }
    let size = nestling_ioctl_value(file.rawValue, KVM_GET_VCPU_MMAP_SIZE, 0)
    if size < Int32(MemoryLayout<kvm_run>.size) {
      throw .call(SystemError("KVM_GET_VCPU_MMAP_SIZE", path, code: size < 0 ? -size : EINVAL))
    }
    runSize = Int(size)
    for (capability, name) in Self.needed where self.extent(of: capability) == 0 {
      throw .missingCapability(name)
    }
  }

  private static let needed: [(Int, String)] = [
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    (KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
  ]

  /// KVM_CHECK_EXTENSION: 0 where there is no such capability, else 1 or its measure.
  public func extent(of capability: Int) -> Int {
    Int(max(0, nestling_ioctl_value(file.rawValue, KVM_CHECK_EXTENSION, UInt(capability))))
  }

  /// How many vCPUs a virtual machine may have.
  public var processorLimit: Int { max(1, extent(of: Int(KVM_CAP_MAX_VCPUS))) }

  public var offersDeadlineTimer: Bool { extent(of: Int(KVM_CAP_TSC_DEADLINE_TIMER)) != 0 }

  /// KVM_GET_SUPPORTED_CPUID: what the host and KVM together can show a guest.
  public func supportedProcessorIdentification() throws(KVMError) -> [kvm_cpuid_entry2] {
    var room = 128
    while true {
      let header = MemoryLayout<kvm_cpuid2>.stride
      let stride = MemoryLayout<kvm_cpuid_entry2>.stride
      var buffer = [UInt64](repeating: 0, count: (header + room * stride) / 8)
      // SAFETY: the buffer has room for the header and the entries that it announces.
      let (answer, entries) = unsafe buffer.withUnsafeMutableBytes { bytes -> (Int32, [kvm_cpuid_entry2]) in
        unsafe bytes.storeBytes(of: UInt32(room), as: UInt32.self)
        let answer = unsafe nestling_ioctl(file.rawValue, KVM_GET_SUPPORTED_CPUID, bytes.baseAddress)
        let count = answer < 0 ? 0 : min(room, Int(unsafe bytes.load(as: UInt32.self)))
        let entries = (0..<count).map { index in
          unsafe bytes.load(fromByteOffset: header + index * stride, as: kvm_cpuid_entry2.self)
        }
        return (answer, entries)
      }
      if answer == -E2BIG, room < 4096 {
        room *= 2
        continue
      }
      if answer < 0 { throw .call(SystemError("KVM_GET_SUPPORTED_CPUID", code: -answer)) }
      return entries
    }
  }

  /// KVM_GET_MSR_INDEX_LIST: the registers that make up a vCPU's state.
  func stateRegisterIndices() throws(KVMError) -> [UInt32] {
    var buffer = [UInt32](repeating: 0, count: 1025)
    buffer[0] = 1024
    // SAFETY: the first word says how many follow it.
    let answer = unsafe buffer.withUnsafeMutableBytes {
      unsafe nestling_ioctl(file.rawValue, KVM_GET_MSR_INDEX_LIST, $0.baseAddress)
    }
    if answer < 0 { throw .call(SystemError("KVM_GET_MSR_INDEX_LIST", code: -answer)) }
    return Array(buffer[1..<1 + min(1024, Int(buffer[0]))])
  }
}
