import CLinux
import Linux
import Synchronization

/// KVM's pseudo-device "vfio" (Documentation/virt/kvm/devices/vfio.rst). It holds the VFIO device files of a virtual
/// machine, so that KVM knows which DMA is not coherent with the caches. It keeps each file open until the file is
/// removed.
///
/// Lock order: its lock is held across KVM's calls.
public final class HostDeviceFiles: Sendable {
  /// A class, because an Optional cannot hold the non-copyable descriptor inside the mutex.
  private final class Device: Sendable {
    let file: FileDescriptor
    init(owning descriptor: Int32) { file = FileDescriptor(owning: descriptor) }
  }

  private let machine: VirtualMachine
  private let device = Mutex<Device?>(nil)

  public init(of machine: VirtualMachine) { self.machine = machine }

  /// Adds a file (KVM_DEV_VFIO_FILE_ADD). Must be called before the device is bound, because some drivers use the
  /// virtual machine at that moment.
  public func add(_ descriptor: Int32) throws(SystemError) {
    try device.withLock { (device) throws(SystemError) in
      let made: Device
      if let device { made = device } else { made = try Self.makeDevice(machine) }
      device = made
      try Self.set(made, UInt64(KVM_DEV_VFIO_FILE_ADD), "KVM_DEV_VFIO_FILE_ADD", descriptor)
    }
  }

  /// Removes a file (KVM_DEV_VFIO_FILE_DEL). The descriptor must still be open.
  public func remove(_ descriptor: Int32) {
    device.withLock { device in
      guard let device else { return }
      try? Self.set(device, UInt64(KVM_DEV_VFIO_FILE_DEL), "KVM_DEV_VFIO_FILE_DEL", descriptor)
    }
  }

  private static func makeDevice(_ machine: VirtualMachine) throws(SystemError) -> Device {
    var request = kvm_create_device(type: UInt32(KVM_DEV_TYPE_VFIO), fd: 0, flags: 0)
    // SAFETY: the kernel reads and fills the structure.
    let answer = unsafe nestling_ioctl(machine.file.rawValue, KVM_CREATE_DEVICE, &request)
    _ = try checked(answer, "KVM_CREATE_DEVICE", "vfio")
    return Device(owning: Int32(bitPattern: request.fd))
  }

  private static func set(
    _ device: Device, _ attribute: UInt64, _ call: String, _ descriptor: Int32
  ) throws(SystemError) {
    var descriptor = descriptor
    // SAFETY: the kernel reads the structure and the descriptor's number; both live until the call returns.
    let answer = unsafe withUnsafeMutablePointer(to: &descriptor) { pointer in
      var request = kvm_device_attr(
        flags: 0, group: UInt32(KVM_DEV_VFIO_FILE), attr: attribute, addr: UInt64(UInt(bitPattern: pointer)))
      return unsafe nestling_ioctl(device.file.rawValue, KVM_SET_DEVICE_ATTR, &request)
    }
    _ = try checked(answer, call)
  }
}
