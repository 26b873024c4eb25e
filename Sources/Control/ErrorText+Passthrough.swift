import Machine

/// Text for what happens to passed-through devices while the guest runs.
extension ErrorText {
  static func line(for notice: PassthroughNotice) -> String {
    line([], "\(notice.device): \(text(for: notice.kind))")
  }

  private static func text(for kind: PassthroughNotice.Kind) -> String {
    switch kind {
    case .guestSecondStage:
      "its DMA is blocked: the guest translates it by second-stage tables, which the host cannot use; set x-flts=on, or "
        + "boot the guest with iommu=pt or intel_iommu=off"
    case .supervisorRequests:
      "its DMA is blocked: the guest asks for supervisor privilege without PASID, which no host supports"
    case .hostRefused(let error): "its DMA is blocked: the host refused the guest's tables: \(error)"
    case .blockedWithSibling(let sibling):
      "its DMA is blocked while that of \(sibling) is: both are in one IOMMU group, which the host blocks as a whole"
    case .pageRequestsRefused(let error): "the guest gets none of its page requests: \(error)"
    case .error: "the device reports an unrecoverable error; the guest is stopped"
    case .request:
      "the host wants the device back: the guest is asked to release it, and loses it when the time for that is over"
    case .notResetBeside(let others):
      "the guest gets the device without a reset, in the state in which its last user left it: only a bus reset would "
        + "work, but that also resets \(others.joined(separator: ", ")), which the guest uses; the next reset of the "
        + "machine resets all of them"
    case .notReset(let error): "the device could not be reset: \(error)"
    case .interruptsRefused(let error): "the guest does not get all of its interrupts: \(error)"
    case .outOfPeersReach(let error):
      "other devices of the guest cannot reach its BARs (peer-to-peer), which needs Linux 6.19 or later: \(error)"
    }
  }
}
