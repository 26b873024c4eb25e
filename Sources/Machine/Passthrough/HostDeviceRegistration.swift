import Linux
import VFIO

/// The registration of a device file with the accelerator, from before the device is bound until after its DMA has
/// ended.
final class HostDeviceRegistration: Sendable {
  private let registry: any HostDeviceRegistry
  private let file: KernelFile

  init(_ file: KernelFile, with registry: any HostDeviceRegistry) throws(SystemError) {
    try registry.add(file.descriptor)
    self.registry = registry
    self.file = file
  }

  deinit { registry.remove(file.descriptor) }
}
