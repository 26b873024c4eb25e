import Linux
import TestSupport
import Testing

@testable import Machine

/// An eventfd stands in for the descriptor of the signals.
@Suite struct TerminationWatchTests {
  private let loop: EventLoop
  private let seen = Notes<String>()

  init() throws { loop = try EventLoop(name: "watch test") }

  private func settle() { for _ in 0..<2 { loop.perform {} } }

  @Test("a signal is reported once, and stays pending for the machine")
  func reportedOnce() throws {
    let signals = try EventDescriptor()
    let seen = seen
    let watch = try TerminationWatch(signals.rawValue, on: loop) { seen.add("signal") }
    settle()
    #expect(seen.all == [])
    signals.signal()
    #expect(eventually { seen.all == ["signal"] })
    settle()
    let isPending = signals.take()
    #expect(seen.all == ["signal"] && isPending)
    signals.signal()
    settle()
    #expect(seen.all == ["signal"])
    withExtendedLifetime(watch) {}
  }

  @Test("a watch that has ended reports nothing")
  func ended() throws {
    let signals = try EventDescriptor()
    let seen = seen
    _ = try TerminationWatch(signals.rawValue, on: loop) { seen.add("signal") }
    signals.signal()
    settle()
    #expect(seen.all == [])
  }
}
