import Linux

/// Sees that a signal asks for the end, even while the machine's own thread is in a call of the host that does not
/// return: opening a file of a server that is gone, say. It takes no signal; that is the machine's.
final class TerminationWatch: Sendable {
  private let end: EventDescriptor
  private let thread: Thread

  /// - Parameters:
  ///   - signals: has input when one came; open as long as this object.
  ///   - handler: called once, on a thread of its own.
  init(_ signals: Int32, _ handler: @escaping @Sendable () -> Void) throws(SystemError) {
    let end = try EventDescriptor()
    let ended = end.rawValue
    thread = try Thread(name: "signals") {
      if Poll.readable([signals, ended])[0] { handler() }
    }
    self.end = end
  }

  deinit {
    end.signal()
    thread.join()
  }
}
