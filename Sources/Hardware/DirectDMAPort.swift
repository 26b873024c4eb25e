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
