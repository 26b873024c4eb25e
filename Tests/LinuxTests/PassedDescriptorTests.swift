import Glibc
import Linux
import TestSupport
import Testing

@Suite struct PassedDescriptorTests {
  private let folder = TemporaryFolder()

  private func probes(_ count: Int) -> [LeakProbe] { (0..<count).map { _ in LeakProbe() } }

  @Test func `descriptors arrive with the bytes of their message and are closed with their last owner`() throws {
    let path = folder.file("socket")
    let listener = try UnixListener(at: path)
    let client = try FileDescriptor(connectingTo: path)
    let server = try listener.accept()
    let probes = probes(2)
    #expect(send([1, 2], with: probes.map(\.descriptor), over: client.rawValue) == 2)
    #expect(send([3], with: [], over: client.rawValue) == 1)
    for probe in probes { probe.letGo() }
    do {
      let (bytes, descriptors) = try #require(try server.receive(count: 16))
      #expect(bytes == [1, 2] && descriptors.count == 2)
      #expect(try descriptors.allSatisfy { try $0.accessMode == O_WRONLY })
      #expect(descriptors.allSatisfy { fcntl($0.rawValue, F_GETFD) == FD_CLOEXEC })
      #expect(!probes.contains { $0.isClosed })
    }
    #expect(probes.allSatisfy { $0.isClosed })
    let (bytes, descriptors) = try #require(try server.receive(count: 16))
    #expect(bytes == [3] && descriptors.isEmpty)
  }

  @Test func `the kernel closes the descriptors beyond the limit at once`() throws {
    let path = folder.file("socket")
    let listener = try UnixListener(at: path)
    let client = try FileDescriptor(connectingTo: path)
    let server = try listener.accept()
    let probes = probes(FileDescriptor.passedLimit + 3)
    #expect(send([1], with: probes.map(\.descriptor), over: client.rawValue) == 1)
    for probe in probes { probe.letGo() }
    let (_, descriptors) = try #require(try server.receive(count: 16))
    #expect(descriptors.count == FileDescriptor.passedLimit)
    #expect(probes.count { $0.isClosed } == 3)
  }

  @Test func `a passed image can be read and written, and any other file is refused`() throws {
    let memory = try GuestMemory(size: 16 << 20, lowLimit: 16 << 20)
    let path = folder.make("image", [1, 2, 3, 4])
    let image = PassedDescriptor(try FileDescriptor(opening: path, O_RDWR))
    let file = try ScatteredFile(image, named: "/dev/fdset/0", readOnly: false, memory: memory)
    #expect(file.size == 4 && file.path == "/dev/fdset/0")
    let nines: [UInt8] = [9, 9]
    let isWritten = memory.write(nines.span.bytes, to: 0x1000)
    #expect(isWritten)
    try file.write(at: 1, from: [ScatteredFile.Segment(address: 0x1000, count: 2)])
    #expect(try file.bytes(at: 0, count: 4) == [1, 9, 9, 4])
    for other in ["/dev/null", folder.path] {
      let passed = PassedDescriptor(try FileDescriptor(opening: other, O_RDONLY))
      #expect(throws: SystemError.self) {
        _ = try ScatteredFile(passed, named: other, readOnly: true, memory: memory)
      }
    }
  }

  @Test func `a pair of sockets carries descriptors and refuses more than fit`() throws {
    let (here, there) = try SocketPair().ends()
    let probes = probes(2)
    #expect(try here.file.send([1, 2, 3], with: probes.map(\.descriptor)) == 3)
    #expect(try here.file.send([4]) == 1)
    for probe in probes { probe.letGo() }
    do {
      let (bytes, descriptors) = try #require(try there.file.receive(count: 16))
      #expect(bytes == [1, 2, 3] && descriptors.count == 2)
      #expect(!probes.contains { $0.isClosed })
    }
    #expect(probes.allSatisfy { $0.isClosed })
    let many = [Int32](repeating: 0, count: FileDescriptor.passedLimit + 1)
    #expect(throws: SystemError("sendmsg", code: EINVAL)) { try here.file.send([1], with: many) }
  }

  @Test func `a send to a full socket returns, and one to a closed socket is an error`() throws {
    var ends: (PassedDescriptor, PassedDescriptor?) = try SocketPair().ends()
    let piece = [UInt8](repeating: 7, count: 1 << 16)
    var sent = 0
    while let count = try ends.0.file.send(piece[...]) {
      sent += count
      try #require(sent < 64 << 20)
    }
    #expect(sent > 0)
    ends.1 = nil
    #expect(throws: SystemError("sendmsg", code: EPIPE)) { try ends.0.file.send([1]) }
  }
}
