import Hardware

/// What the board gives every function: the only ways out of a device.
public struct PCIEnvironment: Sendable {
  public let memoryBus: AddressBus
  public let ioBus: AddressBus
  /// Memory as it is for a device that no IOMMU stands before.
  public let memory: any PhysicalMemory
  public let remapper: any DMARemapper
  public let interrupts: any InterruptRouter
  public let workers: any QueueWorkerSource

  public init(
    memoryBus: AddressBus, ioBus: AddressBus, memory: any PhysicalMemory, remapper: any DMARemapper,
    interrupts: any InterruptRouter, workers: any QueueWorkerSource
  ) {
    self.memoryBus = memoryBus
    self.ioBus = ioBus
    self.memory = memory
    self.remapper = remapper
    self.interrupts = interrupts
    self.workers = workers
  }
}
