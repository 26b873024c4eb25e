import Hardware

/// A slot whose device comes and goes: what the board does to it, and what software does.
extension RootPort {
  /// Makes a device known to software, once its functions are on `bus`, function 0 the last of them. In the native way
  /// events say that presence and link changed; in the ACPI way nothing enables those, and its controller notifies.
  public func inserted() { _ = changeSlot { $0.inserted() } }

  /// Asks software to give up the device in the slot. In the native way only: in the other the controller is asked.
  public func requestRemoval() -> RemovalAnswer {
    precondition(hotplug == .native, "only a slot with an attention button is asked")
    return changeSlot { $0.requestRemoval() } ?? .unpowered
  }

  /// The functions were taken off `bus`, after an eject or by surprise.
  public func emptied() { _ = changeSlot { $0.emptied() } }

  /// A configuration write, of Slot Control or Slot Status or another register.
  func writeSlot(offset: Int, width: AccessWidth, value: UInt64) {
    guard hotplug != nil, let express = function.expressOffset else { return }
    let shift = 8 * (offset - express - ExpressCapability.slotControl)
    // Smart shifts: what is not of the two registers falls out.
    let mask = UInt32(truncatingIfNeeded: width.allOnes << shift)
    guard mask != 0 else { return }
    let outcome = changeSlot { $0.write(UInt32(truncatingIfNeeded: value << shift), mask: mask) }
    switch outcome {
    case .eject: onEject()
    case .refuse: onRefusal()
    case .nothing, nil: break
    }
  }
}
