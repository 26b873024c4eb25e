import Glibc
import Linux
import Synchronization
import VFIO

/// The devices of one iommufd object as functions of the guest, by the kernel's numbers.
///
/// Lock order: code that holds its lock takes no other lock.
final class PassthroughPeers: Sendable {
  private struct Member {
    weak var function: VFIOPCI?
  }

  private let members = Mutex<[UInt32: Member]>([:])

  func add(_ function: VFIOPCI) { members.withLock { $0[function.device.id] = Member(function: function) } }

  func remove(_ function: VFIOPCI) { members.withLock { $0[function.device.id] = nil } }

  func function(_ id: UInt32) -> VFIOPCI? { members.withLock { $0[id]?.function } }

  var all: [VFIOPCI] { members.withLock { $0.sorted { $0.key < $1.key }.compactMap(\.value.function) } }

  /// Carries out the bus resets that functions wait for. No CPU runs.
  func resetBuses() {
    for function in all where function.awaitsBusReset {
      do throws(SystemError) {
        let reset = try function.device.busReset()
        guard reset.isAllowed else { throw VFIOPCI.isNotAllowed }
        let together = [function] + function.surroundingPeers(of: reset)
        for member in together { member.quiesce() }
        defer {
          for member in together {
            member.finishBusReset()
            member.settle()
          }
        }
        try function.device.resetBus()
      } catch {
        function.finishBusReset()
        function.report(.notReset(error))
      }
    }
  }
}

/// The mapping of a passed-through function's BAR into the guest's memory, where other devices' requests reach it
/// (peer-to-peer). The mapping ends with the last reference to this object.
final class PeerMapping: Sendable {
  private let space: IOAddressSpace
  private let address: UInt64
  private let size: UInt64

  /// - Parameter address: guest physical.
  init(
    _ area: VFIORegion.Area, of region: VFIORegion, device: VFIODevice, in space: IOAddressSpace, at address: UInt64
  ) throws(SystemError) {
    // The kernel keeps the memory behind the buffer as long as it is mapped. A reset of the device may revoke the
    // buffer, so each mapping makes its own.
    let buffer = try device.dmaBuffer(of: region, area)
    try space.map(address, size: area.size, to: buffer, [.read, .write])
    self.space = space
    self.address = address
    size = area.size
  }

  deinit { try? space.unmap(address, size: size) }
}

extension PassthroughMemory {
  /// Maps a part of a BAR at the guest's address.
  /// - Returns: the mapping; nil if the kernel refuses the mapping. Other devices then do not reach the BAR.
  func map(
    _ region: VFIORegion, _ area: VFIORegion.Area, of device: VFIODevice, at address: UInt64
  ) -> PeerMapping? {
    do {
      return try PeerMapping(area, of: region, device: device, in: space, at: address)
    } catch {
      // EEXIST: the guest placed the BAR over RAM or another BAR. This is not reported.
      if error.code != EEXIST { recordPeerProblem(error, of: device.id) }
      return nil
    }
  }
}
