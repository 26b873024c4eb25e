import Linux
import Synchronization
import VFIO

/// The devices of one iommufd object as functions of the guest, by the kernel's numbers.
///
/// Lock order: its lock is a leaf.
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
