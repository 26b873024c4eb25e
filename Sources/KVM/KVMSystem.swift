import CLinux
import Glibc
import Linux

/// /dev/kvm: reports the capabilities of this host's KVM and creates virtual machines.
public final class KVMSystem: Sendable {
  let file: FileDescriptor
  /// Size in bytes of the memory that each vCPU shares with the kernel.
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

  /// Returns the value of a capability (KVM_CHECK_EXTENSION): 0 if KVM lacks it, else 1 or a count.
  public func extent(of capability: Int) -> Int {
    Int(max(0, nestling_ioctl_value(file.rawValue, KVM_CHECK_EXTENSION, UInt(capability))))
  }

  /// The largest number of vCPUs in a virtual machine.
  public var processorLimit: Int { max(1, extent(of: Int(KVM_CAP_MAX_VCPUS))) }

  public var offersDeadlineTimer: Bool { extent(of: Int(KVM_CAP_TSC_DEADLINE_TIMER)) != 0 }

  /// Returns the CPUID entries that the host and KVM together support (KVM_GET_SUPPORTED_CPUID).
  public func supportedProcessorIdentification() throws(KVMError) -> [kvm_cpuid_entry2] {
    var room = 128
    while true {
      let header = MemoryLayout<kvm_cpuid2>.stride
      let stride = MemoryLayout<kvm_cpuid_entry2>.stride
      var buffer = [UInt64](repeating: 0, count: (header + room * stride) / 8)
      // SAFETY: the buffer has room for the header and the number of entries that the header states.
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

  /// Returns the indices of the MSRs that belong to a vCPU's state (KVM_GET_MSR_INDEX_LIST).
  func stateRegisterIndices() throws(KVMError) -> [UInt32] {
    var buffer = [UInt32](repeating: 0, count: 1025)
    buffer[0] = 1024
    // SAFETY: the first word states how many words follow it.
    let answer = unsafe buffer.withUnsafeMutableBytes {
      unsafe nestling_ioctl(file.rawValue, KVM_GET_MSR_INDEX_LIST, $0.baseAddress)
    }
    if answer < 0 { throw .call(SystemError("KVM_GET_MSR_INDEX_LIST", code: -answer)) }
    return Array(buffer[1..<1 + min(1024, Int(buffer[0]))])
  }
}
