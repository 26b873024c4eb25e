import Machine
import Testing

@testable import Control

/// Completes `-smp` as QEMU 6.2 and later do.
@Suite struct ProcessorArgumentsTests {
  private static let groupings: [(String, Int, Int, Int)] = [
    ("4", 1, 4, 1), ("cpus=4", 1, 4, 1), ("4,sockets=2", 2, 2, 1), ("4,threads=2", 1, 2, 2),
    ("8,sockets=2,threads=2", 2, 2, 2), ("4,cores=2", 2, 2, 1), ("4,sockets=2,cores=1", 2, 1, 2),
    ("cores=3,threads=2", 1, 3, 2), ("sockets=2", 2, 1, 1), ("4,maxcpus=4,dies=1,clusters=1", 1, 4, 1),
    ("maxcpus=2", 1, 2, 1), ("8,sockets=2,cores=2,threads=2", 2, 2, 2),
  ]

  @Test("missing counts of sockets, cores and threads are completed as in QEMU", arguments: groupings)
  func topologies(_ text: String, _ sockets: Int, _ cores: Int, _ threads: Int) throws {
    let topology = try ProcessorArguments.parsing(text, impliedName: "cpus").topology()
    #expect(topology == ProcessorTopology(sockets: sockets, coresPerSocket: cores, threadsPerCore: threads))
  }
}
