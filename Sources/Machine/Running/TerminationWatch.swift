import Linux

/// Reports a termination signal even while the machine's thread hangs in a system call, for example when it opens a
/// file of a server that does not respond. The signal stays pending, so that the machine can take it, too.
final class TerminationWatch: Sendable {
  private let end: EventDescriptor
  private let thread: Thread

  /// - Parameters:
  ///   - signals: a descriptor that has input while a signal is pending. It must stay open as long as this object
  ///     exists.
  ///   - handler: called once, on the thread of this object.
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
