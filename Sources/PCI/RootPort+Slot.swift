import Hardware

/// The slot of a port with hotplug: actions of the board and of software.
extension RootPort {
  /// Announces a device after its functions were added to `bus`, function 0 last. Native hotplug sets the events for
  /// changes of presence and link. With ACPI hotplug software does not enable these events; the ACPI controller notifies.
  public func inserted() { _ = changeSlot { $0.inserted() } }

  /// Asks software to release the device in the slot. For native hotplug only; the ACPI controller has its own method.
  public func requestRemoval() -> RemovalAnswer {
    precondition(hotplug == .native, "only native hotplug has an attention button")
    return changeSlot { $0.requestRemoval() } ?? .unpowered
  }

  /// Records that the functions were removed from `bus`, after an eject or by surprise.
  public func emptied() { _ = changeSlot { $0.emptied() } }

  /// Applies a configuration write to Slot Control and Slot Status. Ignores other registers.
  func writeSlot(offset: Int, width: AccessWidth, value: UInt64) {
    guard hotplug != nil, let express = function.expressOffset else { return }
    let shift = 8 * (offset - express - ExpressCapability.slotControl)
    // Smart shifts drop the bytes outside the two registers.
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
