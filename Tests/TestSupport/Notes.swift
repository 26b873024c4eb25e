import Synchronization

/// A log that several threads of a test append to.
public final class Notes<Element: Sendable>: Sendable {
  private let notes = Mutex<[Element]>([])

  public init() {}

  public func add(_ note: Element) { notes.withLock { $0.append(note) } }
  public var all: [Element] { notes.withLock { $0 } }
}
