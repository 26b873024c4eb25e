import Synchronization

/// What threads of a test note down, in its order.
public final class Notes<Element: Sendable>: Sendable {
  private let notes = Mutex<[Element]>([])

  public init() {}

  public func add(_ note: Element) { notes.withLock { $0.append(note) } }
  public var all: [Element] { notes.withLock { $0 } }
}
