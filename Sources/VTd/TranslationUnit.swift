import Hardware

/// One remapping hardware unit. (First public shape: registers and walks follow.)
public final class TranslationUnit: BusDevice, DMARemapper {
  public let options: UnitOptions
  private let memory: any PhysicalMemory

  public init(
    options: UnitOptions, memory: any PhysicalMemory, faultEvent: any InterruptRoute,
    invalidationEvent: any InterruptRoute, messages: (any MessageSink)? = nil
  ) throws(UnitOptionError) {
    try options.validate()
    self.options = options
    self.memory = memory
  }

  public func reset() {}
  public func read(offset: UInt64, width: AccessWidth) -> UInt64 { 0 }
  public func write(offset: UInt64, width: AccessWidth, value: UInt64) {}
  public func makePort(for requester: Requester) -> any MemoryPort {
    DirectMemoryPort(memory: memory, requester: requester)
  }
  public func remap(_ message: InterruptMessage, from source: RequesterID, recordFault: Bool) -> RemappedInterrupt {
    .deliver(message)
  }
  public func addObserver(_ observer: any InvalidationObserver) {}
  public func removeObserver(_ observer: any InvalidationObserver) {}
  public var counters: TranslationCounters { TranslationCounters() }
}

/// What becomes of an interrupt request.
public enum RemappedInterrupt: Hashable, Sendable {
  /// Compatibility format, as `InterruptMessage` says for KVM.
  case deliver(InterruptMessage)
  case blocked(FaultReason)
}
