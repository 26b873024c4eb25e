import CLinux
import Glibc
import Linux

/// Interrupts of a VFIO device, by kind (VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_SET_IRQS): each a number of eventfds
/// that the kernel signals.
public enum VFIOInterruptKind: UInt32, Hashable, Sendable, CaseIterable {
  case intx = 0
  case msi = 1
  case msix = 2
  /// An uncorrectable error of the device (AER).
  case error = 3
  /// The host wants the device back.
  case request = 4
}

extension VFIODevice {
  /// How many interrupts of a kind there are; 0 for none.
  public func interruptCount(_ kind: VFIOInterruptKind) throws(SystemError) -> Int {
    guard kind.rawValue < interruptKinds else { return 0 }
    var info = vfio_irq_info()
    info.argsz = byteCount(of: vfio_irq_info.self)
    info.index = kind.rawValue
    do {
      try file.request("VFIO_DEVICE_GET_IRQ_INFO", VFIO_DEVICE_GET_IRQ_INFO, &info)
    } catch {
      // The error interrupt of a device without PCI Express.
      if kind == .error, error.code == EINVAL { return 0 }
      throw error
    }
    return info.flags & UInt32(VFIO_IRQ_INFO_EVENTFD) != 0 ? Int(clamping: info.count) : 0
  }

  /// Has interrupts signal eventfds from now on.
  /// - Parameters:
  ///   - first: the number of the first one.
  ///   - events: a descriptor each; nil for one that signals nothing.
  /// - Throws: ENOSPC if the host has fewer vectors; then none signals.
  public func signal(_ kind: VFIOInterruptKind, from first: Int = 0, to events: [Int32?]) throws(SystemError) {
    try set(kind, first: first, action: Int(VFIO_IRQ_SET_ACTION_TRIGGER), events: events)
  }

  /// Has an eventfd unmask INTx, which the kernel masks by itself each time it comes.
  public func unmaskINTx(by event: Int32) throws(SystemError) {
    try set(.intx, first: 0, action: Int(VFIO_IRQ_SET_ACTION_UNMASK), events: [event])
  }

  /// Switches a kind of interrupts off.
  public func disable(_ kind: VFIOInterruptKind) throws(SystemError) {
    var request = vfio_irq_set()
    request.argsz = byteCount(of: vfio_irq_set.self)
    request.flags = UInt32(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER)
    request.index = kind.rawValue
    try file.request("VFIO_DEVICE_SET_IRQS", VFIO_DEVICE_SET_IRQS, &request)
  }

  private func set(
    _ kind: VFIOInterruptKind, first: Int, action: Int, events: [Int32?]
  ) throws(SystemError) {
    guard !events.isEmpty else { return }
    var request = VariableRequest(vfio_irq_set(), room: 4 * events.count)
    request.header.argsz = UInt32(clamping: request.count)
    request.header.flags = UInt32(clamping: Int(VFIO_IRQ_SET_DATA_EVENTFD) | action)
    request.header.index = kind.rawValue
    request.header.start = UInt32(clamping: first)
    request.header.count = UInt32(clamping: events.count)
    for (index, event) in events.enumerated() {
      request.store(event ?? -1, at: type(of: request).headerSize + 4 * index)
    }
    let answer = try file.request("VFIO_DEVICE_SET_IRQS", VFIO_DEVICE_SET_IRQS, &request)
    // A positive answer is the number of vectors there are, and none is on (vfio_pci_intrs.c, vfio_msi_enable).
    if answer > 0 {
      throw SystemError(
        "VFIO_DEVICE_SET_IRQS", code: ENOSPC,
        because: "the host has \(answer) of \(first + events.count) vectors for it")
    }
  }
}
