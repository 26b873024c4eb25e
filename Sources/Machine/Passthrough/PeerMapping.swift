import Glibc
import Linux
import VFIO

/// A passed-through function's BAR among the guest's memory, where other devices' requests reach it (peer-to-peer). It
/// ends with its last owner.
final class PeerMapping: Sendable {
  private let space: IOAddressSpace
  private let address: UInt64
  private let size: UInt64

  /// - Parameter address: guest physical.
  init(
    _ area: VFIORegion.Area, of region: VFIORegion, device: VFIODevice, in space: IOAddressSpace, at address: UInt64
  ) throws(SystemError) {
    // The kernel keeps what the file stands for as long as it is mapped. A reset of the device may take away what it
    // stands for, so each mapping has one of its own.
    let buffer = try device.dmaBuffer(of: region, area)
    try space.map(address, size: area.size, to: buffer, [.read, .write])
    self.space = space
    self.address = address
    size = area.size
  }

  deinit { try? space.unmap(address, size: size) }
}

extension PassthroughMemory {
  /// Puts a part of a BAR where the guest has it.
  /// - Returns: what ends it when it goes; nil where the kernel does not have it: others do not reach the BAR then.
  func map(
    _ region: VFIORegion, _ area: VFIORegion.Area, of device: VFIODevice, at address: UInt64
  ) -> PeerMapping? {
    do {
      return try PeerMapping(area, of: region, device: device, in: space, at: address)
    } catch {
      // Where the guest put it there is something already: its own doing, which is nothing to tell of.
      if error.code != EEXIST { notePeerProblem(error, of: device.id) }
      return nil
    }
  }
}
