import Glibc
import Linux
import VFIO

/// The reset of a passed-through function: of the function alone if the device supports that (VFIO_DEVICE_RESET),
/// otherwise of its whole bus if this process owns every function on the bus (VFIO_DEVICE_PCI_HOT_RESET). A bus that
/// several functions of the guest share is reset only when all of them are: at the machine's reset, not at the reset of
/// one function.
extension VFIOPCI {
  enum ResetProblem: Error {
    /// Only a bus reset is possible, and it would also reset these functions of the guest.
    case isShared([VFIOPCI])
    case failed(SystemError)
  }

  func resetDevice() throws(ResetProblem) {
    // A transition through D3hot resets less than a bus reset. VFIO uses the transition if the function has no FLR.
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

  /// The kernel's error for a bus reset that would include devices of other owners.
  static var isNotAllowed: SystemError { SystemError("VFIO_DEVICE_PCI_HOT_RESET", code: EPERM) }

  /// Returns the guest's other functions that a bus reset includes.
  func surroundingPeers(of reset: VFIODevice.BusReset) -> [VFIOPCI] {
    guard let peers = surroundings.memory?.peers else { return [] }
    return reset.functions.compactMap { function in
      guard case .device(let id) = function.owner, id != device.id else { return nil }
      return peers.function(id)
    }
  }
}
