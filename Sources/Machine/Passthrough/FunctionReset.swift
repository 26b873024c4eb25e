import Glibc
import Linux
import VFIO

/// How a passed-through function gets its reset: by itself where it can, else with its whole bus, where all that is on it
/// is ours (VFIO_DEVICE_RESET, VFIO_DEVICE_PCI_HOT_RESET). A bus that several functions of the guest share is reset when
/// all of them are: with the machine, not with one of them.
extension VFIOPCI {
  enum ResetProblem: Error {
    /// A bus reset would do, and would take these of the guest with it.
    case isShared([VFIOPCI])
    case failed(SystemError)
  }

  func resetDevice() throws(ResetProblem) {
    // A way through D3hot resets less than a bus reset does, and is what VFIO has where there is no better.
    let isWeak = space.isResetByPowerStates && !space.hasFunctionLevelReset
    var own: SystemError?
    if device.hasReset, !isWeak {
      do {
        return try device.reset()
      } catch {
        own = error
      }
    }
    do throws(ResetProblem) {
      try resetBus()
    } catch {
      if device.hasReset, isWeak, (try? device.reset()) != nil { return }
      if let own, case .failed = error { throw .failed(own) }
      throw error
    }
  }

  private func resetBus() throws(ResetProblem) {
    let others: [VFIOPCI]
    do throws(SystemError) {
      let reset = try device.busReset()
      guard reset.isAllowed else { throw Self.isNotAllowed }
      others = surroundingPeers(of: reset)
      if others.isEmpty { return try device.resetBus() }
    } catch {
      throw .failed(error)
    }
    throw .isShared(others)
  }

  /// What the kernel would say of a bus reset that takes others' devices along.
  static var isNotAllowed: SystemError { SystemError("VFIO_DEVICE_PCI_HOT_RESET", code: EPERM) }

  /// Others of the guest that a bus reset takes along.
  func surroundingPeers(of reset: VFIODevice.BusReset) -> [VFIOPCI] {
    guard let peers = surroundings.memory?.peers else { return [] }
    return reset.functions.compactMap { function in
      guard case .device(let id) = function.owner, id != device.id else { return nil }
      return peers.function(id)
    }
  }
}
