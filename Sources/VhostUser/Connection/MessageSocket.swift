import Linux

/// One direction of requests over a socket: whole messages in, whole messages out, nothing waits. Only the loop's thread
/// uses it.
struct MessageSocket: Sendable {
  private final class Endpoint: Sendable {
    let socket: PassedDescriptor
    let registration: EventLoop.Registration

    init(_ socket: PassedDescriptor, _ registration: EventLoop.Registration) {
      self.socket = socket
      self.registration = registration
    }

    // Before the socket is closed.
    deinit { registration.cancel() }
  }

  /// The most messages that one event handles, so that other handlers of the loop get their turn.
  static let batch = 16

  private let endpoint: Endpoint
  private var assembler = MessageAssembler()
  private var output: [OutgoingMessage] = []
  /// The number of bytes of the first message that are sent.
  private var sent = 0
  /// The time at which the socket had no room; nil if everything is sent.
  private(set) var blockedSince: UInt64?
  private var isReading = true

  /// - Parameters:
  ///   - socket: non-blocking.
  ///   - onEvent: called on the loop's thread.
  init(
    _ socket: PassedDescriptor, on loop: EventLoop, _ onEvent: @escaping @Sendable () -> Void
  ) throws(SystemError) {
    endpoint = Endpoint(socket, try loop.register(socket.rawValue, .readable) { _ in onEvent() })
  }

  /// Reads one message.
  /// - Returns: nil if it is not complete yet.
  /// - Throws: `.closed` at the end of the connection.
  mutating func receive() throws(VhostUserError) -> ReceivedMessage? {
    while true {
      let read: (bytes: [UInt8], descriptors: [PassedDescriptor])?
      do throws(SystemError) {
        read = try endpoint.socket.file.receive(count: assembler.needed)
      } catch {
        throw VhostUserError(error)
      }
      guard let (bytes, descriptors) = read else { return nil }
      if bytes.isEmpty { throw .closed }
      let shared = descriptors.map { SharedDescriptor($0.rawValue, owner: $0) }
      if let message = try assembler.take(bytes, shared) { return message }
    }
  }

  /// Sends messages after those that are not sent yet.
  mutating func send(_ messages: [OutgoingMessage], now: UInt64) throws(VhostUserError) {
    output += messages
    var done = 0
    defer { output.removeFirst(done) }
    while done < output.count {
      let message = output[done]
      let count: Int?
      do throws(SystemError) {
        count = try endpoint.socket.file.send(
          message.bytes[sent...], with: sent == 0 ? message.descriptors.map(\.rawValue) : [])
      } catch {
        throw VhostUserError(error)
      }
      guard let count else {
        blockedSince = blockedSince ?? now
        updateInterest()
        return
      }
      sent += count
      if sent == message.bytes.count {
        sent = 0
        done += 1
      }
    }
    blockedSince = nil
    updateInterest()
  }

  /// Whether everything has been sent.
  var isIdle: Bool { output.isEmpty }

  /// Sets whether the loop waits for messages.
  mutating func setReading(_ isReading: Bool) {
    self.isReading = isReading
    updateInterest()
  }

  private func updateInterest() {
    var interest: EventLoop.Events = isReading ? .readable : []
    if blockedSince != nil { interest.insert(.writable) }
    endpoint.registration.setInterest(interest)
  }

  /// Ends both directions at once.
  func shutDown() { endpoint.socket.file.shutDown() }
}
