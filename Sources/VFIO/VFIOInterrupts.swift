import CLinux
import Glibc
import Linux

/// The interrupt types of a VFIO device (VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_SET_IRQS). For each interrupt of a type
/// the kernel signals an eventfd.
public enum VFIOInterruptType: UInt32, Hashable, Sendable, CaseIterable {
  case intx = 0
  case msi = 1
  case msix = 2
  /// An uncorrectable error of the device (AER).
  case error = 3
  /// A request by the host to release the device.
  case request = 4
}

extension VFIODevice {
  /// Returns the number of interrupts of a type that the device has.
  public func interruptCount(_ type: VFIOInterruptType) throws(SystemError) -> Int {
    guard type.rawValue < interruptTypeCount else { return 0 }
    var info = vfio_irq_info()
    info.argsz = byteCount(of: vfio_irq_info.self)
    info.index = type.rawValue
    do {
      try file.request("VFIO_DEVICE_GET_IRQ_INFO", VFIO_DEVICE_GET_IRQ_INFO, &info)
    } catch {
      // A device without PCI Express has no error interrupt.
      if type == .error, error.code == EINVAL { return 0 }
      throw error
    }
    return info.flags & UInt32(VFIO_IRQ_INFO_EVENTFD) != 0 ? Int(clamping: info.count) : 0
  }

  /// Makes interrupts signal eventfds from now on.
  /// - Parameters:
  ///   - first: the number of the first interrupt.
  ///   - events: a descriptor for each; nil to signal nothing.
  /// - Throws: ENOSPC if the host has fewer vectors; then no interrupt signals.
  public func signal(_ type: VFIOInterruptType, from first: Int = 0, to events: [Int32?]) throws(SystemError) {
    try set(type, first: first, action: Int(VFIO_IRQ_SET_ACTION_TRIGGER), events: events)
  }

  /// Makes an eventfd unmask INTx, which the kernel masks each time it arrives.
  public func unmaskINTx(by event: Int32) throws(SystemError) {
    try set(.intx, first: 0, action: Int(VFIO_IRQ_SET_ACTION_UNMASK), events: [event])
  }

  /// Disables all interrupts of a type.
  public func disable(_ type: VFIOInterruptType) throws(SystemError) {
    var request = vfio_irq_set()
    request.argsz = byteCount(of: vfio_irq_set.self)
    request.flags = UInt32(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER)
    request.index = type.rawValue
    try file.request("VFIO_DEVICE_SET_IRQS", VFIO_DEVICE_SET_IRQS, &request)
  }

  private func set(
    _ type: VFIOInterruptType, first: Int, action: Int, events: [Int32?]
  ) throws(SystemError) {
    guard !events.isEmpty else { return }
    var request = VariableRequest(vfio_irq_set(), room: 4 * events.count)
    request.header.argsz = UInt32(clamping: request.count)
    request.header.flags = UInt32(clamping: Int(VFIO_IRQ_SET_DATA_EVENTFD) | action)
    request.header.index = type.rawValue
    request.header.start = UInt32(clamping: first)
    request.header.count = UInt32(clamping: events.count)
    for (index, event) in events.enumerated() {
      request.store(event ?? -1, at: VariableRequest<vfio_irq_set>.headerSize + 4 * index)
    }
    let answer = try file.request("VFIO_DEVICE_SET_IRQS", VFIO_DEVICE_SET_IRQS, &request)
    // A positive result is the number of available vectors; the kernel has enabled none (vfio_pci_intrs.c,
    // vfio_msi_enable).
    if answer > 0 {
      throw SystemError(
        "VFIO_DEVICE_SET_IRQS", code: ENOSPC,
        cause: .vectors(available: Int(answer), requested: first + events.count))
    }
  }
}
