import Linux

/// Notices a signal that asks for the end even while the machine's own thread hangs in a system call, in opening a file
/// of a dead server for example. It leaves the signal for the machine to take.
final class TerminationWatch: Sendable {
  private let end: EventDescriptor
  private let thread: Thread

  /// - Parameters:
  ///   - signals: a descriptor with input while a signal is pending; open as long as this object.
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
