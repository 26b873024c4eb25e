import Glibc
import Linux

/// The host's end of a character device, opened from its options.
struct ChardevEndpoint: ~Copyable {
  enum Input {
    case none
    case standardInput
    case connection
  }

  enum Listener: ~Copyable {
    case unix(UnixListener)
    case tcp(TCPListener)

    var rawValue: Int32 {
      switch self {
      case .unix(let listener): listener.rawValue
      case .tcp(let listener): listener.rawValue
      }
    }

    /// Accepts a client; throws EAGAIN if there is none.
    func accept() throws(SystemError) -> ChardevOutputBuffer.Target {
      switch self {
      case .unix(let listener): ChardevOutputBuffer.Target(connection: try listener.accept())
      case .tcp(let listener): ChardevOutputBuffer.Target(connection: try listener.accept())
      }
    }
  }

  var input = Input.none
  /// The peer at the start; nil if there is none yet, and for `null`.
  var target: ChardevOutputBuffer.Target?
  var listener: Listener?

  private init() {}

  /// Opens the host's end. A socket server waits for its first client if the options ask for that.
  /// - Parameter interruption: a descriptor that becomes readable to cancel that wait, or the wait for a server or for
  ///   a FIFO's reader.
  init(_ options: any ChardevOptions, interruption: Int32?) throws(SystemError) {
    self.init()
    switch options {
    case is StdioChardevOptions:
      target = ChardevOutputBuffer.Target(try FileDescriptor(duplicating: STDOUT_FILENO))
      input = .standardInput
    case let options as FileChardevOptions:
      let file = try FileDescriptor(
        openingOutput: options.path, options.append ? O_APPEND : O_TRUNC, patience: Patience(until: interruption))
      let mayBlock = !file.isNonBlocking
      target = ChardevOutputBuffer.Target(file, mayBlock: mayBlock)
    case let options as SocketChardevOptions: try open(options, Patience(until: interruption))
    default: break
    }
  }

  private mutating func open(_ options: SocketChardevOptions, _ patience: Patience) throws(SystemError) {
    input = .connection
    let host = options.host ?? ""
    let port = options.port ?? 0
    guard options.server else {
      // The device that takes over the socket connects.
      if options.reconnect > 0 { return }
      if let path = options.path {
        target = ChardevOutputBuffer.Target(connection: try FileDescriptor(connectingTo: path, patience: patience))
      } else {
        target = ChardevOutputBuffer.Target(
          connection: try FileDescriptor(connectingTo: host, port: port, patience: patience))
      }
      return
    }
    let opened: Listener
    if let path = options.path {
      opened = .unix(try UnixListener(at: path))
    } else {
      opened = .tcp(try TCPListener(at: host, port: port))
    }
    if options.waits {
      let name = options.path ?? "\(host):\(port)"
      while target == nil {
        try patience.wait(untilReadable: opened.rawValue, "accept", name)
        do {
          target = try opened.accept()
        } catch {
          // The client is gone, or the host has no free descriptor.
          try patience.pause("accept", name)
        }
      }
    }
    listener = consume opened
  }
}

extension ChardevOutputBuffer.Target {
  /// A connected socket, which no other process shares.
  fileprivate convenience init(connection: consuming FileDescriptor) {
    connection.makeNonBlocking()
    self.init(connection, mayBlock: false)
  }
}
