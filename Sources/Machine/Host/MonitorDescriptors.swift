import Linux
import Synchronization

/// The open files that the clients of one monitor have passed (SCM_RIGHTS): the files of the latest message with files,
/// until a command takes one; and the files with names (`getfd`). Named files stay open when a client disconnects, and
/// close with the monitor.
///
/// Lock order: code that holds its lock takes no other lock; files are closed without it.
public final class MonitorDescriptors: Sendable {
  private struct State {
    var offered: [PassedDescriptor] = []
    var named: [String: PassedDescriptor] = [:]
    var hasClient = false
  }

  public let sets: DescriptorSets
  private let state = Mutex(State())

  public init(_ sets: DescriptorSets = DescriptorSets()) { self.sets = sets }

  /// Offers the files of a message to the next command. Closes those of an earlier message that no command took.
  public func offer(_ files: [PassedDescriptor]) {
    let earlier = exchangeOffered(for: files)
    _ = earlier
  }

  /// Takes the first offered file and closes the others.
  public func takeOffered() -> PassedDescriptor? { exchangeOffered(for: []).first }

  private func exchangeOffered(for files: [PassedDescriptor]) -> [PassedDescriptor] {
    state.withLock { state in
      defer { state.offered = files }
      return state.offered
    }
  }

  /// Gives a file a name. Closes an earlier file of that name.
  public func name(_ file: PassedDescriptor, _ name: String) {
    let earlier = state.withLock { $0.named.updateValue(file, forKey: name) }
    _ = earlier
  }

  public subscript(_ name: String) -> PassedDescriptor? { state.withLock { $0.named[name] } }

  /// Removes a name. Its file closes unless it has another owner.
  /// - Returns: false if there is no such name.
  @discardableResult
  public func remove(_ name: String) -> Bool {
    let file = state.withLock { $0.named.removeValue(forKey: name) }
    return file != nil
  }

  /// Records that a client has connected or disconnected. Closes the offered files.
  public func setConnected(_ connected: Bool) {
    offer([])
    let changes = state.withLock { state in
      defer { state.hasClient = connected }
      return state.hasClient != connected
    }
    if !changes { return }
    if connected { sets.clientConnected() } else { sets.clientDisconnected() }
  }
}

/// The name by which `Control` knows the type, because `Control` does not import `Linux`.
public typealias PassedFile = PassedDescriptor
