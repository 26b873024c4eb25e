// Ports of a root complex without an IOMMU.

/// The port of a function without an IOMMU: its DMA addresses are guest physical.
public final class DirectDMAPort: DMAPort {
  public let memory: any PhysicalMemory
  public let inFlight = RequestsInFlight()
  private let requester: Requester

  public init(memory: any PhysicalMemory, requester: Requester) {
    self.memory = memory
    self.requester = requester
  }

  public func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    guard requester.busMasterEnable else { throw .disabled }
    return PhysicalSegment(address: address, count: count)
  }

  public func noteUnclaimed() { requester.receiveMasterAbort() }
}

/// The remapper of a board without an IOMMU.
public final class DirectRemapper: DMARemapper {
  private let memory: any PhysicalMemory

  public init(memory: any PhysicalMemory) { self.memory = memory }

  public func makePort(for requester: Requester) -> any DMAPort {
    DirectDMAPort(memory: memory, requester: requester)
  }
}

extension DMARemapper {
  /// Makes a port without translation services: it carries requests without PASID and refuses all others.
  public func makeRequestPort(for requester: Requester) -> any RequestPort {
    UntranslatedRequestPort(makePort(for: requester))
  }
}

/// The request port of a root complex without ATS and PASID.
public final class UntranslatedRequestPort: RequestPort {
  private let port: any DMAPort
  private let refusing: RefusingDMAPort

  public init(_ port: any DMAPort) {
    self.port = port
    refusing = RefusingDMAPort(memory: port.memory)
  }

  public func dmaPort(for prefix: PASIDPrefix?) -> any DMAPort { prefix == nil ? port : refusing }
  public var translatedPort: any DMAPort { refusing }
  public func translate(_ address: UInt64, noWrite: Bool, prefix: PASIDPrefix?) -> TranslationCompletion {
    .unsupportedRequest
  }
  public func requestPage(_ request: PageRequest) -> PageRequestOutcome { .discarded }
  public func completeInvalidations(_ tags: UInt32) {}
  public func connect(_ cache: (any TranslationCache)?) {}
}

/// A port that refuses all requests.
final class RefusingDMAPort: DMAPort {
  let memory: any PhysicalMemory
  let inFlight = RequestsInFlight()

  init(memory: any PhysicalMemory) { self.memory = memory }

  func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
    throw .translation
  }
}
