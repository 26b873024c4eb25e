import Hardware
import Synchronization

/// The places of a function's BARs on the buses, as last reported to the function's model.
struct BARPlacements {
  struct Placement {
    /// The address that the model received last.
    var base: UInt64?
    var attachment: AddressBus.Attachment?
    /// The visible parts that the model received last.
    var parts: [Range<UInt64>] = []
  }

  var bars: [Placement]
  /// Devices whose visible parts may have changed when the function was refused.
  var uncovered: [any BusDevice] = []

  init(count: Int) { bars = Array(repeating: Placement(), count: count) }
}

/// The placement of the BARs: their regions follow the registers, the power state and the bridge above.
///
/// `placing` serializes the changes, also across calls into the model. See `Function` for the lock order.
extension Function {
  /// Writes a BAR's address, as firmware does. The Command register enables decoding separately.
  public func place(_ bar: BaseAddressRegister, at base: UInt64) {
    access {
      updateConfiguration { bar.place(at: base, in: &$0) }
      updatePlacement()
    }
  }

  private func bus(of bar: BaseAddressRegister) -> AddressBus {
    bar.space == .io ? environment.ioBus : environment.memoryBus
  }

  /// Returns the address at which a BAR decodes; nil if the bridge above does not forward all of it.
  private func decodedBase(of bar: BaseAddressRegister, in space: ConfigurationSpace) -> UInt64? {
    guard let base = bar.base(in: space), let port = environment.upstream else { return bar.base(in: space) }
    return port.forwards(bar.space, base: base, size: bar.size) ? base : nil
  }

  /// Moves the BARs' regions to the addresses at which the BARs decode now, and reports the changes to the model.
  func updatePlacement() {
    var affected: [any BusDevice] = []
    placing.withLock { placing in
      let (space, model) = spaceAndModel
      let decodes = powerState(in: space) == 0 && !environment.isRefused
      for (index, bar) in description.baseAddressRegisters.enumerated() {
        let base = decodes ? decodedBase(of: bar, in: space) : nil
        guard base != placing.bars[index].base else { continue }
        let bus = bus(of: bar)
        if placing.bars[index].base != nil {
          // Notify the model first: once the bus has detached the region, regions behind it become visible.
          model?.placed(bar: bar.index, at: nil, visible: [])
          if let attachment = placing.bars[index].attachment { bus.detach(attachment, affecting: &affected) }
        }
        placing.bars[index] = BARPlacements.Placement(base: base)
        if let base {
          let attachment = bus.attach(
            BARRegion(function: self, bar: bar.index), at: base, size: bar.size, priority: .movable,
            affecting: &affected)
          let parts = bus.visibleParts(of: attachment)
          placing.bars[index].attachment = attachment
          placing.bars[index].parts = parts
          model?.placed(bar: bar.index, at: base, visible: parts)
        }
      }
    }
    finishPlacing()
    // Call this without `placing`, because other functions take their own `placing`.
    for device in affected { device.visiblePartsChanged() }
  }

  /// Reports changes of the BARs' visible parts to the model, after another region was attached or detached.
  fileprivate func updateVisibility() {
    placing.withLock { placing in
      let model = model
      for (index, bar) in description.baseAddressRegisters.enumerated() {
        guard let base = placing.bars[index].base, let attachment = placing.bars[index].attachment else { continue }
        let parts = bus(of: bar).visibleParts(of: attachment)
        guard parts != placing.bars[index].parts else { continue }
        placing.bars[index].parts = parts
        model?.placed(bar: bar.index, at: base, visible: parts)
      }
    }
    finishPlacing()
  }

  /// Completes a `refuse` that found `placing` taken. Every holder of `placing` calls this after it released the lock.
  private func finishPlacing() {
    // Either a concurrent `refuse` finds the lock free, or this check finds the function refused.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    if environment.isRefused { detachRegions() }
  }

  /// Detaches the BARs of a refused function from the buses. If `placing` is taken, its holder calls this next.
  /// `withdrawRegions` notifies the model and the devices behind the BARs later, because that may make host calls.
  func detachRegions() {
    _ = placing.withLockIfAvailable { placing in
      for (index, bar) in description.baseAddressRegisters.enumerated() {
        guard let attachment = placing.bars[index].attachment else { continue }
        bus(of: bar).detach(attachment, affecting: &placing.uncovered)
        placing.bars[index].attachment = nil
      }
    }
  }

  /// Reports to the model that no BAR decodes, and to the devices behind the BARs that they may be visible. Called when
  /// the function is refused and nothing of it is in flight.
  func withdrawRegions() {
    updatePlacement()
    let uncovered = placing.withLock { placing in
      defer { placing.uncovered = [] }
      return placing.uncovered
    }
    for device in uncovered { device.visiblePartsChanged() }
  }
}

/// The region of a BAR on its bus.
private final class BARRegion: BaseAddressRegion {
  let function: Function
  let bar: Int

  init(function: Function, bar: Int) {
    self.function = function
    self.bar = bar
  }

  func read(offset: UInt64, width: AccessWidth) -> UInt64 {
    function.access {
      if let msix = function.msix, let value = msix.read(bar: bar, offset: offset, width: width) { return value }
      return function.model?.readRegion(bar: bar, offset: offset, width: width) ?? width.allOnes
    } ?? width.allOnes
  }

  func write(offset: UInt64, width: AccessWidth, value: UInt64) {
    function.access {
      if let msix = function.msix, msix.write(bar: bar, offset: offset, width: width, value: value) { return }
      function.model?.writeRegion(bar: bar, offset: offset, width: width, value: value)
    }
  }

  func visiblePartsChanged() { function.updateVisibility() }
}

/// A region that a function has attached to a bus for a BAR.
public protocol BaseAddressRegion: BusDevice {
  var function: Function { get }
  var bar: Int { get }
}
