import Glibc
import Hardware
import Linux
import Testing
import VTd
import VTdOracle

@testable import Machine

/// Writes trace events to a file.
struct TraceWriterTests {
  @Test("each event is one line of the file")
  func aLineAnEvent() throws {
    let path = "/tmp/nestling-trace-\(UInt64.random(in: 0 ... .max)).log"
    defer { unlink(path) }
    let guest = try Guest(trace: Trace([.registerWrite, .faulted], unit: "a", sink: TraceWriter(path: path)))
    guest.write32(0x38, 0)
    guest.enableTranslation()
    _ = guest.port(RequesterID(bus: 1, device: 2, function: 3)).answer(0x5000, .write)
    #expect(
      try text(of: path) == """
        vtd_reg_write unit=a addr=0x38 size=4 value=0x0
        vtd_reg_write unit=a addr=0x18 size=4 value=0x80000000
        vtd_dmar_fault unit=a sid=01:02.3 fault=0x1 addr=0x5000 write=1 suppressed=0

        """)
    // A new writer empties the file.
    _ = try TraceWriter(path: path)
    #expect(try text(of: path) == "")
  }

  @Test("a full pipe loses trace events and does not block the guest", .timeLimit(.minutes(1)))
  func aFullPipe() throws {
    let path = "/tmp/nestling-trace-\(UInt64.random(in: 0 ... .max)).fifo"
    #expect(mkfifo(path, 0o600) == 0)
    defer { unlink(path) }
    let reader = try FileDescriptor(opening: path, O_RDONLY | O_NONBLOCK)
    let guest = try Guest(trace: Trace([.registerWrite], unit: nil, sink: TraceWriter(path: path)))
    for _ in 0..<10_000 { guest.write32(0x38, 0) }
    var text: [UInt8] = []
    while let more = try reader.read(count: 65536) { text += more }
    guest.write32(0x38, 0)
    let rest = String(decoding: try reader.read(count: 65536) ?? [], as: UTF8.self)
    let line = "vtd_reg_write addr=0x38 size=4 value=0x0\n"
    #expect(text.count % line.utf8.count == 0 && text.count < 10_000 * line.utf8.count)
    #expect(rest == "trace_events_lost count=\(10_000 - text.count / line.utf8.count)\n" + line)
  }

  @Test("a folder is refused as a trace file")
  func aFolderIsNoFile() {
    #expect(throws: SystemError.self) { try TraceWriter(path: "/tmp") }
  }

  private func text(of path: String) throws -> String {
    let file = try #require(fopen(path, "r"))
    defer { fclose(file) }
    var text = ""
    while true {
      let character = getc(file)
      guard character >= 0, let byte = UInt8(exactly: character) else { return text }
      text.unicodeScalars.append(Unicode.Scalar(byte))
    }
  }
}
