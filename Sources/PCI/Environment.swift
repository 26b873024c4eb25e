import Hardware

/// What the board gives every function. Each makes its own `DeviceEnvironment` of it: the only ways out of a device.
public struct PCIEnvironment: Sendable {
  public let memoryBus: AddressBus
  public let ioBus: AddressBus
  /// Memory as it is for a device that no IOMMU stands before.
  public let memory: any PhysicalMemory
  public let remapper: any DMARemapper
  public let interrupts: any InterruptRouter
  public let workers: any QueueWorkerSource
  /// Makes a place to sleep for a thread that waits until a device is out of use.
  public let makeParking: @Sendable () -> any Parking
  /// The port that the function is below; nil on bus 0.
  public let upstream: RootPort?
  /// There are other functions at the function's device number, and software is to look for them.
  public let isMultifunction: Bool

  public init(
    memoryBus: AddressBus, ioBus: AddressBus, memory: any PhysicalMemory, remapper: any DMARemapper,
    interrupts: any InterruptRouter, workers: any QueueWorkerSource,
    makeParking: @escaping @Sendable () -> any Parking, upstream: RootPort? = nil, isMultifunction: Bool = false
  ) {
    self.memoryBus = memoryBus
    self.ioBus = ioBus
    self.memory = memory
    self.remapper = remapper
    self.interrupts = interrupts
    self.workers = workers
    self.makeParking = makeParking
    self.upstream = upstream
    self.isMultifunction = isMultifunction
  }

  /// The same ways out, with interrupts that pass another router.
  public func routing(by interrupts: any InterruptRouter) -> PCIEnvironment {
    PCIEnvironment(
      memoryBus: memoryBus, ioBus: ioBus, memory: memory, remapper: remapper, interrupts: interrupts,
      workers: workers, makeParking: makeParking, upstream: upstream, isMultifunction: isMultifunction)
  }

  /// The same ways out, below a port.
  public func below(_ port: RootPort?, isMultifunction: Bool = false) -> PCIEnvironment {
    PCIEnvironment(
      memoryBus: memoryBus, ioBus: ioBus, memory: memory, remapper: remapper, interrupts: interrupts,
      workers: workers, makeParking: makeParking, upstream: port, isMultifunction: isMultifunction)
  }

  /// What a device is on the fabric: on bus 0 a part of the root complex, at the end of a link else.
  public var endpointType: ExpressType { upstream == nil ? .rootComplexIntegratedEndpoint : .endpoint }
}
