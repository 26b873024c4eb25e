import Glibc

/// QEMU's storage daemon with a disk of 1 MiB, whose sectors begin with their numbers, as a vhost-user back end. Debian's
/// package qemu-system-common has it.
public final class StorageDaemon {
  public static let program = "/usr/bin/qemu-storage-daemon"
  public static var isInstalled: Bool { access(program, X_OK) == 0 }

  private let folder: String
  private var process = pid_t()
  public var socket: String { folder + "/socket" }
  private var image: String { folder + "/image" }

  public init() {
    var template = Array("/tmp/nestling-storage-XXXXXX".utf8CString)
    folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    var words = [UInt32](repeating: 0, count: 1 << 18)
    for sector in 0..<2048 { words[sector * 128] = UInt32(sector) }
    let file = open(image, O_RDWR | O_CREAT, 0o600)
    let count = words.withUnsafeBytes { write(file, $0.baseAddress, $0.count) }
    precondition(count == 1 << 20, "no image")
    close(file)
  }

  /// Starts the daemon.
  /// - Returns: whether it listens.
  public func start() -> Bool {
    unlink(socket)
    let words = [
      Self.program, "--blockdev", "driver=file,node-name=f,filename=\(image)", "--export",
      "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=\(socket),writable=on,num-queues=2",
    ]
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
    defer { for argument in arguments { free(argument) } }
    guard posix_spawn(&process, words[0], nil, nil, &arguments, environ) == 0 else { return false }
    return eventually { isListening }
  }

  private var isListening: Bool {
    let probe = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    defer { close(probe) }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(socket.utf8)) }
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    return withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { connect(probe, $0, size) == 0 }
    }
  }

  public func kill() {
    if process > 0 {
      Glibc.kill(process, SIGKILL)
      var status: Int32 = 0
      waitpid(process, &status, 0)
    }
    process = 0
  }

  deinit {
    kill()
    unlink(socket)
    unlink(image)
    rmdir(folder)
  }
}
