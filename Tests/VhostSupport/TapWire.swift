import CLinux
import Glibc
import Linux
import Vhost

/// A tap interface, and a packet socket on the host's end of it (packet(7)): what a driver sends comes out of the
/// socket, and what the test sends comes to the driver.
package final class TapWire: Sendable {
  /// Whether the process may use /dev/vhost-net and create interfaces, as in the lab.
  package static let canUseVhost: Bool = {
    guard access(VhostNet.devicePath, R_OK | W_OK) == 0, access(TapInterface.devicePath, R_OK | W_OK) == 0 else {
      return false
    }
    return (try? TapInterface(named: "nstl%d")) != nil
  }()

  package let tap: TapInterface
  private let socket: FileDescriptor

  package init() throws {
    tap = try TapInterface(named: "nstl%d")
    let all = UInt16(0x0003).bigEndian
    // AF_PACKET, ETH_P_ALL
    socket = FileDescriptor(owning: Glibc.socket(17, Int32(SOCK_RAW.rawValue), Int32(all)))
    if socket.rawValue < 0 { throw SystemError("socket", code: errno) }
    var name = [CChar](repeating: 0, count: 16)
    for (index, byte) in tap.name.utf8.enumerated() { name[index] = CChar(bitPattern: byte) }
    // SIOCSIFFLAGS, IFF_UP
    var flags: UInt32 = 1
    let answer = nestling_interface_request(socket.rawValue, 0x8914, &name, &flags)
    if answer < 0 { throw SystemError("SIOCSIFFLAGS", tap.name, code: -answer) }
    // struct sockaddr_ll: family, protocol, index, and 12 bytes that bind(2) does not read.
    var address = [UInt8](repeating: 0, count: 20)
    address.withUnsafeMutableBytes {
      $0.storeBytes(of: 17, as: UInt16.self)
      $0.storeBytes(of: all, toByteOffset: 2, as: UInt16.self)
      $0.storeBytes(of: Int32(if_nametoindex(tap.name)), toByteOffset: 4, as: Int32.self)
    }
    let bound = address.withUnsafeBytes {
      bind(socket.rawValue, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self), 20)
    }
    if bound != 0 { throw SystemError("bind", tap.name, code: errno) }
    socket.makeNonBlocking()
  }

  /// The next frame on the wire; nil if none waits. Frames of the host's own network are among them.
  package func receive() throws -> [UInt8]? { try socket.read(count: 4096) }

  package func send(_ frame: [UInt8]) throws { try socket.write(frame) }
}
