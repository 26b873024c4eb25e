import Devices
import Hardware
import Linux
import Passthrough

/// An accelerator runs the guest's CPUs. It also provides their local APICs, the doorbells that they ring without an
/// exit, and the clock that they see. The board uses an accelerator only by these protocols.
protocol Accelerator: AnyObject, Sendable {
  /// The width of a guest physical address, in bits.
  var physicalAddressWidth: Int { get }
  var clock: any MachineClock { get }
  var localInterrupts: any LocalInterrupts { get }
  var doorbells: any Doorbells { get }
  /// Maps device memory into the guest; nil if every access of a CPU outside RAM goes through the board.
  var deviceMemory: (any DeviceMemory)? { get }

  /// Registers the host's devices; nil if the accelerator does not need to know them.
  var hostDeviceFiles: (any HostDeviceRegistry)? { get }

  /// Makes the CPUs. Must be called at most once.
  func makeProcessors(board: Board) throws(StartError) -> any Processors
}

/// The local APICs as the receivers of messages. Messages are in compatibility format: they have passed the remapper.
protocol LocalInterrupts: AnyObject, Sendable {
  /// Sends a message. A message that reaches no APIC is lost, as on hardware.
  func send(_ message: InterruptMessage)

  /// Makes the vector of an MSI or MSI-X message, which is sent often.
  func makeVector() -> any MessageVector

  /// Sets the message that a level-triggered pin of the IOAPIC sends from now on, so that the board learns when that
  /// interrupt ends; nil for none. This is slow.
  func setLevelTriggered(pin: Int, _ message: InterruptMessage?)
}

/// The path of one vector to a local APIC. Its owner makes each call with the owner's lock held.
protocol MessageVector: AnyObject {
  /// Changes the message that `signal` sends. After the first use of `event` this is slow: it rewrites the kernel's
  /// routing table.
  func set(_ message: InterruptMessage)
  func signal()

  /// An eventfd by which others, such as the kernel's VFIO, signal the vector; nil if there is none.
  var event: Int32? { get }
  /// Holds back messages: until the next call of `set`, signals of `event` stay pending.
  func hold()
  /// Whether a signal of `event` is pending.
  var hasPendingSignal: Bool { get }
}

extension MessageVector {
  var event: Int32? { nil }
  func hold() {}
  var hasPendingSignal: Bool { false }
}

extension Accelerator {
  var deviceMemory: (any DeviceMemory)? { nil }
  var hostDeviceFiles: (any HostDeviceRegistry)? { nil }
}

/// Doorbells: addresses at which a write of the guest signals an eventfd, without an exit to this process.
protocol Doorbells: AnyObject, Sendable {
  /// - Parameter event: an eventfd that stays open until `detach`.
  /// - Returns: false if the doorbell cannot be attached. The device then receives the writes itself.
  func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool
  func detach(_ event: Int32, fromDoorbell address: UInt64)
}

/// The guest's CPUs.
protocol Processors: AnyObject, Sendable {
  /// Puts every CPU into its reset state, and the first one at the kernel's entry point. No CPU may be running.
  func reset(entry: BootEntry) throws(StartError)
  func start() throws(SystemError)
  /// Makes the CPUs stop soon. May be called on any thread, including a CPU's thread.
  func requestStop()
  /// Stops the CPUs, and returns when none is running. Must not be called on a CPU's thread.
  func stop()
  /// The kernel's thread IDs of the CPUs' threads, in the CPUs' order; empty while the CPUs are stopped.
  var threadIDs: [Int] { get }
  /// Restarts or ends the measurement of exits.
  func measureExits(_ isOn: Bool)
  /// The exits of each CPU, in the CPUs' order; empty while measuring is off.
  var exitSummaries: [ExitSummary] { get }
}

extension Processors {
  var threadIDs: [Int] { [] }
  func measureExits(_ isOn: Bool) {}
  var exitSummaries: [ExitSummary] { [] }
}

/// The clock of the guest's time.
protocol MachineClock: AnyObject, Sendable {
  /// The time in nanoseconds, which never decreases.
  var now: UInt64 { get }
  /// Makes a timer that uses this clock.
  func makeTimer() -> any OneShotTimer
}
