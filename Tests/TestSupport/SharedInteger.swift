import Synchronization

/// A number that threads of a test share.
public final class SharedInteger: Sendable {
  private let storage: Atomic<Int>

  public init(_ value: Int = 0) { storage = Atomic(value) }

  public var value: Int {
    get { storage.load(ordering: .sequentiallyConsistent) }
    set { storage.store(newValue, ordering: .sequentiallyConsistent) }
  }

  public func increment() { storage.wrappingAdd(1, ordering: .sequentiallyConsistent) }
}
