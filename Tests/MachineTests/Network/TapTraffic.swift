import Glibc
import Synchronization
import TestSupport
import VhostSupport

/// A driver that keeps each buffer of a queue in use, on a thread, and checks each frame: those that it sends on the
/// wire, and those that it receives in its buffers.
final class TapTraffic: @unchecked Sendable {
  enum Direction {
    case transmit
    case receive
  }

  private struct Buffer {
    /// Whether the device has the buffer.
    var isAvailable = false
    /// Since the start.
    var completions = 0
    /// The generation of the last frame in it, and of the last one on the wire.
    var generation = 0
    var seen = 0
  }

  private struct State {
    var isRunning = false
    var isEnded = false
    var buffers = [Buffer](repeating: Buffer(), count: Int(TestRing.size))
    /// The buffer that the thread does not make available.
    var withheld: UInt16?
    /// The number of used buffers since the start.
    var used: UInt16 = 0
    /// The last frame that was sent to the receiving driver, the last one that it received, and the last one before the
    /// start.
    var sent = 0
    var received = 0
    var sentBefore = 0
    var frames = 0
    var problem: String?
  }

  private static let secret: UInt8 = 0xa5
  private static let pageSize = 4096
  private static let headerSize = 12
  private static let frameSize = 512
  private static let ethernet: [UInt8] = [UInt8](repeating: 0xff, count: 6) + [2, 0, 0, 0, 0, 1, 0x88, 0xb5]

  let direction: Direction
  let ring: TestRing
  private let wire: TapWire
  private let state = Mutex(State())
  private var thread: TestThread?

  init(_ direction: Direction, over tap: TranslatedTap) {
    self.direction = direction
    ring = direction == .transmit ? tap.send : tap.receive
    wire = tap.wire
    thread = TestThread { [self] in
      while state.withLock({ lap(&$0) }) { usleep(100) }
    }
  }

  /// Ends the thread.
  func end() {
    state.withLock { $0.isEnded = true }
    thread?.join()
    thread = nil
  }

  // MARK: The test's thread

  /// The first error in a frame.
  var problem: String? { state.withLock { $0.problem } }
  /// The number of correct frames.
  var frames: Int { state.withLock { $0.frames } }

  func start() { state.withLock { $0.isRunning = true } }
  func pause() { state.withLock { $0.isRunning = false } }

  func completions(of index: UInt16) -> Int { state.withLock { $0.buffers[Int(index)].completions } }

  /// Whether the device has the buffer.
  func isAvailable(_ index: UInt16) -> Bool {
    state.withLock { state in
      reclaim(&state)
      return state.buffers[Int(index)].isAvailable
    }
  }

  /// Makes the thread withhold the buffer after its use.
  func withhold(_ index: UInt16) { state.withLock { $0.withheld = index } }

  /// Makes the buffer available for one more use, and withholds it afterwards.
  func makeAvailable(_ index: UInt16) {
    state.withLock { state in
      state.withheld = index
      if !state.buffers[Int(index)].isAvailable { submit(index, &state) }
    }
  }

  /// Overwrites the buffer's page with a secret, and makes the buffer available if the device has it no longer.
  func placeSecret(in index: UInt16) {
    state.withLock { state in
      reclaim(&state)
      ring.fill(index, secretPage)
      if !state.buffers[Int(index)].isAvailable { give(index, &state) }
    }
  }

  /// Checks the secret and the last frames, and prepares for the next start. The queues are stopped.
  func reset(afterSecretIn index: UInt16) {
    state.withLock { state in
      reclaim(&state)
      drain(&state)
      if ring.contents(of: index, count: Self.pageSize) != secretPage { fail("the page of the secret changed", &state) }
      for index in state.buffers.indices {
        state.buffers[index].isAvailable = false
        state.buffers[index].completions = 0
      }
      state.withheld = nil
      state.used = 0
      state.sentBefore = state.sent
    }
  }

  /// A page that is a valid frame with its header, so that a device with a stale translation would send it.
  private var secretPage: [UInt8] {
    let start = [UInt8](repeating: 0, count: Self.headerSize) + Self.ethernet
    return start + [UInt8](repeating: Self.secret, count: Self.pageSize - start.count)
  }

  // MARK: With the lock

  /// - Returns: false after the end.
  private func lap(_ state: inout State) -> Bool {
    guard state.isRunning, !state.isEnded else { return !state.isEnded }
    reclaim(&state)
    drain(&state)
    for index in 0..<TestRing.size where index != state.withheld && !state.buffers[Int(index)].isAvailable {
      submit(index, &state)
    }
    // A few at a time, because a full interface drops frames.
    if direction == .receive {
      while state.sent - max(state.received, state.sentBefore) < 32 {
        state.sent += 1
        try? wire.send(frame(0, state.sent))
      }
    }
    return true
  }

  /// Makes a buffer with the next frame available.
  private func submit(_ index: UInt16, _ state: inout State) {
    if direction == .transmit {
      state.buffers[Int(index)].generation += 1
      let header = [UInt8](repeating: 0, count: Self.headerSize)
      ring.fill(index, header + frame(index, state.buffers[Int(index)].generation))
    }
    give(index, &state)
  }

  private func give(_ index: UInt16, _ state: inout State) {
    state.buffers[Int(index)].isAvailable = true
    let isWritable = direction == .receive
    ring.submit(index, count: isWritable ? Self.pageSize : Self.headerSize + Self.frameSize, isWritable: isWritable)
  }

  /// Takes back the buffers that the device has used.
  private func reclaim(_ state: inout State) {
    while state.used != ring.used {
      let index = Int(ring.usedEntry(state.used).index)
      if direction == .receive { check(Array(ring.received(state.used).dropFirst(Self.headerSize)), &state) }
      state.used &+= 1
      state.buffers[index].isAvailable = false
      state.buffers[index].completions += 1
    }
  }

  /// Checks the frames that the device has sent.
  private func drain(_ state: inout State) {
    guard direction == .transmit else { return }
    while let bytes = try? wire.receive() { check(bytes, &state) }
  }

  /// Checks that a frame is one of the test's, exactly, and later than the one before; or that it is the host's.
  private func check(_ bytes: [UInt8], _ state: inout State) {
    let count = Self.ethernet.count
    guard bytes.count == Self.frameSize, bytes.starts(with: Self.ethernet), bytes[count] < UInt8(TestRing.size) else {
      // The host's network sends other frames.
      let isSecret = bytes.contains([UInt8](repeating: Self.secret, count: 4))
      if isSecret || bytes.starts(with: Self.ethernet) {
        fail("\(isSecret ? "the secret is on the wire" : "a damaged frame"): \(bytes.prefix(32))", &state)
      }
      return
    }
    let index = bytes[count]
    let generation = bytes[count + 1..<count + 9].reduce(0) { $0 << 4 | Int($1) }
    guard bytes == frame(UInt16(index), generation) else {
      return fail("buffer \(index), generation \(generation), has other bytes", &state)
    }
    let last = direction == .transmit ? state.buffers[Int(index)].seen : state.received
    let limit = direction == .transmit ? state.buffers[Int(index)].generation : state.sent
    guard generation > last, generation <= limit else {
      return fail("buffer \(index), generation \(generation) after \(last)", &state)
    }
    if direction == .transmit { state.buffers[Int(index)].seen = generation } else { state.received = generation }
    state.frames += 1
  }

  private func fail(_ text: String, _ state: inout State) { if state.problem == nil { state.problem = text } }

  /// A frame of the test. Its generation is in hexadecimal digits, so that no byte of it is the secret's.
  private func frame(_ index: UInt16, _ generation: Int) -> [UInt8] {
    let digits = (0..<8).map { UInt8(generation >> (4 * (7 - $0)) & 0xf) }
    let start = Self.ethernet + [UInt8(index)] + digits
    return start + [UInt8](repeating: UInt8(generation & 0x3f), count: Self.frameSize - start.count)
  }
}
