import Hardware
import TestSupport
import Testing
import VTdOracle

@testable import VTd

/// Remotes that complete an invalidation later: what software waits for is parked, so no vCPU waits.
@Suite("remote IOTLBs that answer later", .timeLimit(.minutes(5)))
struct RemoteCompletionTests {
  let source = RequesterID(rawValue: 0x18)
  let timer = HandTimer()
  static let input: UInt64 = 0x4000

  private func started(
    scalable: Bool = true, timed: Bool = true, deviceIOTLB: Bool = false
  ) throws -> (Guest, KeepingRemote) {
    let guest = try Guest(deviceTimer: timed ? timer : nil) {
      $0.scalableMode = scalable
      $0.deviceIOTLB = deviceIOTLB
    }
    let table = guest.page()
    guest.map(Self.input, in: table, levels: 4, entry: 0x9003, tableBits: 3)
    guest.map(0x8000, in: table, levels: 4, entry: 0xd003, tableBits: 3)
    if scalable {
      guest.start(source, scalable: Guest.pasidEntry(type: 2, secondStage: table))
    } else {
      guest.setRootTable(guest.legacyTables(source: source, secondStage: table).root, scalable: false)
      guest.enableTranslation()
    }
    guest.enableQueue(wide: scalable)
    let remote = guest.remote(source)
    remote.answerAtOnce(false)
    #expect(remote.answer(Self.input) == .at(0x9000, 8))
    return (guest, remote)
  }

  private func status(_ guest: Guest) -> UInt32? { guest.memory.loadUInt32(at: guest.statusPage) }
  private static let everything = CacheTests.iotlb(1)

  @Test("a wait descriptor is parked until the remote completes, and the vCPU continues")
  func parked() throws {
    let (guest, remote) = try started()
    #expect(!guest.submitAndWait(Self.everything))
    #expect(guest.read64(0x80) == guest.read64(0x88), "all descriptors are fetched")
    #expect(remote.held.isEmpty && timer.isRunning)
    // The descriptors after the wait are not fetched.
    guest.submit(Self.everything)
    #expect(guest.read64(0x80) != guest.read64(0x88))
    // Other numbers and misses do not complete it.
    remote.port?.complete(0)
    remote.port?.complete(.max)
    _ = remote.answer(Self.input)
    #expect(status(guest) == 0)
    remote.answerAll()
    #expect(status(guest) == 1)
    #expect(guest.read64(0x80) == guest.read64(0x88))
    // The second invalidation takes the mapping that the remote got in between.
    #expect(remote.calls.count == 2 && remote.held.isEmpty)
    remote.answerAll()
    #expect(guest.submitAndWait(Self.everything))
  }

  @Test("while a remote has not completed an invalidation, it receives no second one, and a wait includes both")
  func collected() throws {
    let (guest, remote) = try started()
    _ = remote.answer(0x8000)
    for round: UInt64 in 0..<1000 {
      guest.submit(CacheTests.iotlb(3, domain: 5, address: (round % 100) << 13 | 0x10_0000))
    }
    #expect(remote.calls.count == 1)
    guest.submit(CacheTests.iotlb(3, domain: 5, address: Self.input))
    #expect(!guest.submitAndWait())
    remote.answerAll()
    // The remote has lost the collected ranges, but has not completed this yet.
    #expect(remote.calls.count == 2 && remote.calls.last?.ranges == [.all])
    #expect(remote.held.isEmpty && status(guest) == 0)
    remote.answerAll()
    #expect(status(guest) == 1)
  }

  @Test("a completion within the call of invalidate, or from another thread, completes the wait each time")
  func threads() throws {
    let (guest, remote) = try started()
    for round: UInt32 in 1...300 {
      _ = remote.answer(Self.input)
      let before = remote.calls.count
      let shared = Shared(guest)
      let thread = TestThread {
        while status(shared.guest) != round {
          if remote.calls.count > before { remote.answerAll() }
        }
      }
      _ = guest.submitAndWait(Self.everything)
      thread.join()
      #expect(status(guest) == round)
    }
  }

  @Test("context and IOTLB commands of the registers stay busy until the remote completes")
  func registerCommands() throws {
    let (guest, remote) = try started(scalable: false)
    guest.write64(0x28, 1 << 63 | 1 << 61)
    #expect(guest.read64(0x28) >> 63 == 1 && guest.read64(0xf8) >> 63 == 0)
    guest.write64(0xf8, 1 << 63 | 1 << 60)
    #expect(guest.read64(0xf8) >> 63 == 1)
    remote.answerAll()
    #expect(guest.read64(0x28) == 1 << 61 | 1 << 59)
    #expect(guest.read64(0xf8) == 1 << 60 | 1 << 57)
    // Nothing is outstanding: the command completes at once.
    guest.write64(0xf8, 1 << 63 | 1 << 60)
    #expect(guest.read64(0xf8) >> 63 == 0)
  }

  @Test("Global Status shows a command after the remote has completed")
  func globalCommands() throws {
    let (guest, remote) = try started()
    guest.command(clear: 31)
    #expect(guest.status >> 31 == 1)
    #expect(remote.answer(Self.input) == .at(Self.input, 8))
    // A second command while the first is incomplete.
    guest.write64(0x20, 0x400)
    guest.write32(0x18, 1 << 30 | 1 << 26)
    #expect(guest.status >> 30 & 1 == 0)
    remote.answerAll()
    #expect(guest.status >> 30 & 1 == 0)
    remote.answerAll()
    #expect(guest.status >> 30 == 1)
  }

  @Test("a reset does not wait, and a later wait includes its invalidation")
  func reset() throws {
    let (guest, remote) = try started()
    #expect(!guest.submitAndWait(Self.everything))
    let parked = guest.statusPage
    _ = remote.answer(Self.input)
    guest.unit.reset()
    guest.setRootTable(0, scalable: true)
    guest.enableQueue(wide: true)
    #expect(!guest.submitAndWait(Self.everything))
    remote.answerAll()
    #expect(status(guest) == 0)
    remote.answerAll()
    #expect(status(guest) == 2)
    #expect(guest.memory.loadUInt32(at: parked) == 0, "the reset drops the parked wait")
  }

  // MARK: Dead remotes

  @Test("a remote that does not complete in time is cut off, and then the wait completes")
  func timeout() throws {
    let (guest, remote) = try started()
    let other = guest.remote(RequesterID(rawValue: 0x18))
    _ = other.answer(Self.input)
    #expect(!guest.submitAndWait(Self.everything))
    for _ in 0..<9 { timer.fire() }
    #expect(remote.cutOffs == 0 && status(guest) == 0)
    timer.fire()
    #expect(remote.cutOffs == 1 && status(guest) == 1)
    #expect(!timer.isRunning)
    #expect(guest.read32(0x34) == 0, "this is no fault of the guest")
    #expect(remote.port?.isConnected == false)
    #expect(throws: DMAError.disabled) { try remote.miss(Self.input) }
    remote.answerAll()
    remote.port?.disconnect()
    #expect(other.answer(Self.input) == .at(0x9000, 8))
    #expect(guest.submitAndWait(Self.everything))
    #expect(other.held.isEmpty && remote.calls.count == 1)
  }

  @Test("the time begins anew with each invalidation")
  func timeBeginsAnew() throws {
    let (guest, remote) = try started()
    for _ in 0..<4 {
      _ = remote.answer(Self.input)
      #expect(!guest.submitAndWait(Self.everything))
      for _ in 0..<9 { timer.fire() }
      remote.answerAll()
      timer.fire()
    }
    #expect(remote.cutOffs == 0 && status(guest) == 4)
  }

  @Test("on a unit without a timer, a remote that does not complete immediately is cut off")
  func noTimer() throws {
    let (guest, remote) = try started(timed: false)
    #expect(guest.submitAndWait(Self.everything))
    #expect(remote.cutOffs == 1)
  }

  @Test("disconnecting completes what the remote has not completed")
  func disconnect() throws {
    let (guest, remote) = try started()
    #expect(!guest.submitAndWait(Self.everything))
    remote.port?.disconnect()
    #expect(status(guest) == 1 && remote.cutOffs == 0)
  }

  @Test("a wait includes the device TLBs and the remotes, and each has its own time limit")
  func withDeviceTLB() throws {
    let (guest, remote) = try started(deviceIOTLB: true)
    let port = guest.requestPort(RequesterID(rawValue: 0x20))
    let cache = RecordingCache(port, answersAtOnce: false)
    let deviceTLB: [UInt64] = [3 | 0x20 << 32, 0x1234_5000]
    #expect(!guest.submitAndWait(deviceTLB, Self.everything))
    remote.answerAll()
    #expect(status(guest) == 0)
    port.completeInvalidations(1)
    #expect(status(guest) == 1)
    _ = remote.answer(Self.input)
    #expect(!guest.submitAndWait(deviceTLB, Self.everything))
    port.completeInvalidations(2)
    #expect(status(guest) == 1)
    remote.answerAll()
    #expect(status(guest) == 2)
    // The function times out: that aborts the wait, and is no fault of the remote.
    _ = remote.answer(Self.input)
    #expect(!guest.submitAndWait(deviceTLB, Self.everything))
    timer.fire()
    timer.fire()
    #expect(guest.read32(0x34) & 0x40 != 0 && remote.cutOffs == 0)
    remote.answerAll()
    #expect(status(guest) == 2)
    #expect(cache.invalidations.count == 3)
  }

  @Test("the events of a remote are traced")
  func trace() throws {
    let notes = Notes<String>()
    let guest = try Guest(
      trace: Trace([.remoteMissed, .remoteMapped, .remoteUnmapped, .remoteCutOff], sink: NoteSink(notes)))
    let remote = guest.remote(source)
    remote.answerAtOnce(false)
    _ = try remote.miss(0x1000, .write)
    guest.setRootTable(0, scalable: false)
    #expect(notes.all == ["vtd_remote_miss", "vtd_remote_map", "vtd_remote_unmap", "vtd_remote_cut_off"])
  }

  private final class NoteSink: TraceSink {
    private let notes: Notes<String>
    init(_ notes: Notes<String>) { self.notes = notes }
    func record(_ event: String, unit: String?, _ arguments: [TraceArgument]) { notes.add(event) }
  }
}
