import Glibc
import Linux

/// A character device's end at the host, opened: what its options come to.
struct CharacterEndpoint: ~Copyable {
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

    func accept() throws(SystemError) -> FileDescriptor {
      switch self {
      case .unix(let listener): try listener.accept()
      case .tcp(let listener): try listener.accept()
      }
    }
  }

  var input = Input.none
  /// Who is there from the start; nil for nobody, and for `null`.
  var target: CharacterOutputBuffer.Target?
  var listener: Listener?

  private init() {}

  /// Opens it, and where the options ask for it waits for the first client.
  /// - Parameter interruption: a descriptor that has input when a person gives up that wait.
  init(_ options: any CharacterOptions, interruption: Int32?) throws(SystemError) {
    self.init()
    switch options {
    case is StdioCharacterOptions:
      target = CharacterOutputBuffer.Target(try FileDescriptor(duplicating: STDOUT_FILENO))
      input = .standardInput
    case let options as FileCharacterOptions:
      let flags = O_WRONLY | O_CREAT | (options.append ? O_APPEND : O_TRUNC)
      target = CharacterOutputBuffer.Target(try FileDescriptor(opening: options.path, flags, mode: 0o666))
    case let options as SocketCharacterOptions: try open(options, interruption)
    default: break
    }
  }

  private mutating func open(_ options: SocketCharacterOptions, _ interruption: Int32?) throws(SystemError) {
    input = .connection
    let host = options.host ?? ""
    let port = options.port ?? 0
    guard options.server else {
      if let path = options.path {
        target = CharacterOutputBuffer.Target(try FileDescriptor(connectingTo: path))
      } else {
        target = CharacterOutputBuffer.Target(try FileDescriptor(connectingTo: host, port: port))
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
      while target == nil {
        if let interruption, Poll.readable([interruption, opened.rawValue])[0] {
          throw SystemError("accept", options.path ?? "\(host):\(port)", code: EINTR)
        }
        // One who connected and went at once was none.
        if let client = try? opened.accept() { target = CharacterOutputBuffer.Target(client) }
      }
    }
    listener = consume opened
  }
}
