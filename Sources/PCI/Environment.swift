import Hardware

/// The services that the board offers to every function. Each function makes its own `DeviceEnvironment` from them, and
/// its device reaches the machine only through that.
public struct PCIEnvironment: Sendable {
  public let memoryBus: AddressBus
  public let ioBus: AddressBus
  /// Guest physical memory, as a device without an IOMMU accesses it.
  public let memory: any PhysicalMemory
  public let remapper: any DMARemapper
  public private(set) var interrupts: any InterruptRouter
  public let workers: any QueueWorkerSource
  /// Makes the place where a thread sleeps until the last accesses and requests of a device have ended.
  public let makeParking: @Sendable () -> any Parking
  /// The port above the function; nil on bus 0.
  public private(set) var upstream: RootPort?
  /// Whether the function's device number has other functions, so that software must probe for them.
  public private(set) var isMultifunction: Bool

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

  /// Returns a copy with another interrupt router.
  public func routing(by interrupts: any InterruptRouter) -> PCIEnvironment {
    var copy = self
    copy.interrupts = interrupts
    return copy
  }

  /// Returns a copy for a function below a port.
  public func below(_ port: RootPort?, isMultifunction: Bool = false) -> PCIEnvironment {
    var copy = self
    copy.upstream = port
    copy.isMultifunction = isMultifunction
    return copy
  }

  /// The Device/Port Type of a device: on bus 0 an endpoint integrated into the root complex, below a port an endpoint
  /// of a link.
  public var endpointType: ExpressType { upstream == nil ? .rootComplexIntegratedEndpoint : .endpoint }
}
