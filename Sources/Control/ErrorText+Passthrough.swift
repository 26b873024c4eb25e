import Machine

/// What a person is told of passed-through devices while the guest runs.
extension ErrorText {
  static func line(for notice: PassthroughNotice) -> String {
    line([], "\(notice.device): \(text(for: notice.kind))")
  }

  private static func text(for kind: PassthroughNotice.Kind) -> String {
    switch kind {
    case .guestSecondStage:
      "its DMA is blocked: the guest translates it by second-stage tables, and only x-flts=on, iommu=pt or "
        + "intel_iommu=off in the guest can be followed"
    case .supervisorRequests:
      "its DMA is blocked: the guest asks for supervisor privilege without PASID, which no host has"
    case .hostRefused(let error): "its DMA is blocked: the host refused the guest's tables: \(error)"
    case .blockedWithSibling(let sibling):
      "its DMA is blocked while that of \(sibling) is: they are of one IOMMU group, which the host blocks as a whole"
    case .pageRequestsRefused(let error): "the guest gets none of its page requests: \(error)"
    case .error: "the device reports an error that it does not recover from; the guest is stopped"
    case .request: "the host wants the device back: the guest is asked for it, and loses it when its time is up"
    case .notResetBeside(let others):
      "the guest gets it without a reset, as it left its last user: only a reset of its bus would do, which takes along "
        + "\(others.joined(separator: ", ")), and the guest uses that; the next reset of the machine resets all"
    case .notReset(let error): "no reset brought it to its first state: \(error)"
    case .interruptsRefused(let error): "the guest does not get all of its interrupts: \(error)"
    case .outOfPeersReach(let error):
      "its BARs are out of reach of the guest's other devices (peer-to-peer), which takes Linux 6.19 or later: "
        + "\(error)"
    }
  }
}
