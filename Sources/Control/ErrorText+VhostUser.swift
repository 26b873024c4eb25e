import Machine

/// Texts for the back ends of vhost-user devices.
extension ErrorText {
  static func text(for reason: VhostUserProblem.Reason) -> String {
    switch reason {
    case .privateMemory:
      "the guest's RAM is private to Nestling: start it with "
        + "-object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram"
    case .noTranslation:
      "iommu_platform=on: the back end has no device IOTLB (VIRTIO_F_ACCESS_PLATFORM); without iommu_platform=on the "
        + "device uses guest physical addresses"
    case .backEnd(let error): text(for: error)
    }
  }

  static func text(for error: StartError.VhostUserError) -> String {
    switch error {
    case .messageFlags(let request, let flags):
      "the back end's message \(request) has the wrong flags 0x\(String(flags, radix: 16))"
    case .messageSize(let request, let size): "the back end's message \(request) has the wrong size \(size)"
    case .unexpectedReply(let request, nil): "the back end sent a reply to request \(request), which was not made"
    case .unexpectedReply(let request, let awaited?):
      "the back end sent a reply to request \(request) instead of \(awaited.name)"
    case .descriptors(let request, let count):
      "the back end's message \(request) has the wrong number of descriptors, \(count)"
    case .reply(let request, let value):
      "the back end's reply to \(request.name) has the wrong value 0x\(String(value, radix: 16))"
    case .refused(let request, let code): "the back end refused \(request.name) with code \(code)"
    case .timeout(let request): "the back end did not answer \(request.name) in time"
    case .notReading: "the back end does not read its socket"
    case .closed: "the back end closed the connection"
    case .lacksProtocolFeatures(let features):
      "the back end lacks " + features.names.map { "VHOST_USER_PROTOCOL_F_" + $0 }.joined(separator: ", ")
    case .lacksFeatures(let bits):
      "the back end lacks virtio feature bits 0x\(String(bits, radix: 16))"
    case .tooFewQueues(let available, let needed): "the back end has \(available) queues, but \(needed) are needed"
    case .system(let error): text(for: error)
    }
  }
}
