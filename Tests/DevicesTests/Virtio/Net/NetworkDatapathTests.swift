import Devices
import Hardware
import Synchronization
import TestSupport
import Testing

/// Tests which queues of a network device its backend's datapath serves.
@Suite struct NetworkDatapathTests {
  /// Records the numbers of the queues that it serves.
  private final class Server: QueueDatapath {
    let started = Notes<Int>()
    let fails = Mutex(false)
    func start(_ queue: DatapathQueue) throws(DatapathRefusal) {
      started.add(queue.index)
      if fails.withLock({ $0 }) { throw .failed }
    }
    func stop(queue index: Int, _ completion: @escaping @Sendable (UInt16?) -> Void) -> DatapathStop { .stopped(0) }
    func setCall(_ call: Notifier?, queue index: Int) {}
  }

  private let server = Server()

  private func make(without: VirtioFeatures = []) throws -> TestNetwork {
    var parameters = VirtioNetParameters()
    parameters[.netMultiqueue] = true
    var capabilities = RecordingNetwork.everything
    capabilities.pairs = 2
    return try TestNetwork(parameters, capabilities: capabilities, without: without, datapath: server)
  }

  @Test func `the datapath serves the queues of packets, and the device the control queue`() throws {
    let network = try make()
    #expect(server.started.all == [0, 1, 2, 3])
    #expect(network.board.workers.workers.map(\.isLent) == [true, true, true, true, false])
  }

  @Test func `after a queue has failed, no further queue starts`() throws {
    server.fails.withLock { $0 = true }
    let network = try make()
    #expect(server.started.all == [0])
    #expect(network.board.workers.workers.map(\.isLent) == [false, false, false, false, false])
  }

  @Test func `without multiqueue, queue 2 is the control queue`() throws {
    _ = try make(without: .netMultiqueue)
    #expect(server.started.all == [0, 1])
  }

  @Test func `the datapath learns when the link goes down and up`() throws {
    let network = try make()
    network.net.setLink(up: false)
    network.net.setLink(up: false)
    network.net.setLink(up: true)
    #expect(network.backend.links == [true, false, true])
  }
}
