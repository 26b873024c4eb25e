import Linux
import Synchronization

/// The open files that the clients of one monitor have handed over (SCM_RIGHTS): those that came with the latest
/// message that had any, until a command takes one; and those that have names (`getfd`). The named ones stay while
/// clients come and go, and are closed with the monitor.
///
/// Lock order: its lock is a leaf; files are closed without it.
public final class MonitorDescriptors: Sendable {
  private struct State {
    var offered: [PassedDescriptor] = []
    var named: [String: PassedDescriptor] = [:]
    var hasClient = false
  }

  public let sets: DescriptorSets
  private let state = Mutex(State())

  public init(_ sets: DescriptorSets = DescriptorSets()) { self.sets = sets }

  /// They came with a message. Those of an earlier one that no command took are closed.
  public func offer(_ files: [PassedDescriptor]) {
    let earlier = exchangeOffered(for: files)
    _ = earlier
  }

  /// Takes the first of those that came; the others are closed.
  public func takeOffered() -> PassedDescriptor? { exchangeOffered(for: []).first }

  private func exchangeOffered(for files: [PassedDescriptor]) -> [PassedDescriptor] {
    state.withLock { state in
      defer { state.offered = files }
      return state.offered
    }
  }

  /// A file of that name is closed.
  public func name(_ file: PassedDescriptor, _ name: String) {
    let earlier = state.withLock { $0.named.updateValue(file, forKey: name) }
    _ = earlier
  }

  public subscript(_ name: String) -> PassedDescriptor? { state.withLock { $0.named[name] } }

  /// Gives the file up. It closes unless another owner holds it.
  /// - Returns: false where there is none.
  @discardableResult
  public func remove(_ name: String) -> Bool {
    let file = state.withLock { $0.named.removeValue(forKey: name) }
    return file != nil
  }

  /// A client comes or goes.
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

/// For modules that know nothing of the host's calls.
public typealias PassedFile = PassedDescriptor
