import Synchronization

/// Records which memory of devices the CPUs have mapped.
public final class RecordingDeviceMemory: Sendable {
  public struct Area: Hashable, Sendable {
    public let address: UInt64
    public let size: UInt64

    public init(address: UInt64, size: UInt64) {
      self.address = address
      self.size = size
    }
  }

  private let areas = Mutex<Set<Area>>([])

  public init() {}

  public var mapped: Set<Area> { areas.withLock { $0 } }

  private final class Slot: Sendable {
    let owner: RecordingDeviceMemory
    let area: Area
    init(_ owner: RecordingDeviceMemory, _ area: Area) {
      self.owner = owner
      self.area = area
      owner.areas.withLock { _ = $0.insert(area) }
    }
    deinit { owner.areas.withLock { _ = $0.remove(area) } }
  }

  public func map(_ address: UInt64, size: UInt64, hostAddress: UInt64) -> (any AnyObject & Sendable)? {
    Slot(self, Area(address: address, size: size))
  }
}
