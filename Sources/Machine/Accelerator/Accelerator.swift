import Devices
import Hardware
import Linux

/// What runs a guest's CPUs, with what must be near them: their local APICs, the doorbells that they ring without an
/// exit, the clock that they see. The board knows an accelerator by these protocols alone.
protocol Accelerator: AnyObject, Sendable {
  /// Bits of a guest physical address.
  var physicalAddressWidth: Int { get }
  var clock: any MachineClock { get }
  var localInterrupts: any LocalInterrupts { get }
  var doorbells: any Doorbells { get }
  /// nil for one whose CPUs reach RAM alone without the board.
  var deviceMemory: (any DeviceMemory)? { get }

  /// nil for one that need not know of the host's devices.
  var hostDeviceFiles: (any HostDeviceRegistry)? { get }

  /// To be called once.
  func makeProcessors(board: Board) throws(StartError) -> any Processors
}

/// The local APICs, as those see them who send messages there. A message is in compatibility format: it has passed
/// the remapper.
protocol LocalInterrupts: AnyObject, Sendable {
  /// Sends a message. One that reaches no APIC is lost, as on hardware.
  func send(_ message: InterruptMessage)

  /// A vector of MSI or MSI-X: a message that is sent often.
  func makeVector() -> any MessageVector

  /// Says which message a level-triggered pin of the IOAPIC sends from now on, so that the end of that interrupt comes
  /// back to the board; nil for none. A change is slow.
  func setLevelTriggered(pin: Int, _ message: InterruptMessage?)
}

/// One vector's way to a local APIC. Its owner calls it under a lock of its own.
protocol MessageVector: AnyObject {
  /// Changes what `signal` sends. Slow once `event` was asked for: the kernel's table of routes is rewritten.
  func set(_ message: InterruptMessage)
  func signal()

  /// An eventfd by which others signal it, the kernel's VFIO for one. nil where there is none.
  var event: Int32? { get }
  /// Until `set` is called again, signals of `event` add up and none is sent.
  func hold()
}

extension MessageVector {
  var event: Int32? { nil }
  func hold() {}
}

/// Memory that CPUs reach without an exit, beside RAM.
protocol DeviceMemory: AnyObject, Sendable {
  /// - Parameters:
  ///   - address: guest physical; aligned to pages, as the others are.
  ///   - hostAddress: mapped as long as the answer is held.
  /// - Returns: what ends it when it goes; nil where that cannot be, and the accesses come to the board.
  func map(_ address: UInt64, size: UInt64, hostAddress: UInt64) -> (any AnyObject & Sendable)?
}

/// What must know of each device of the host whose DMA reaches the guest's memory: whether it keeps to the caches
/// decides how CPUs may cache that memory.
protocol HostDeviceRegistry: AnyObject, Sendable {
  /// - Parameter descriptor: of VFIO's device file, before it is bound.
  func add(_ descriptor: Int32) throws(SystemError)
  /// Before the descriptor is closed.
  func remove(_ descriptor: Int32)
}

extension Accelerator {
  var deviceMemory: (any DeviceMemory)? { nil }
  var hostDeviceFiles: (any HostDeviceRegistry)? { nil }
}

/// Writes of the guest that signal an eventfd instead of ending in an exit.
protocol Doorbells: AnyObject, Sendable {
  /// - Parameter event: an eventfd, open until `detach`.
  /// - Returns: false where that cannot be; the write then comes to the device.
  func attach(_ event: Int32, toDoorbell address: UInt64) -> Bool
  func detach(_ event: Int32, fromDoorbell address: UInt64)
}

/// What drives the board between a start and a stop: the guest's CPUs, or what stands in for them.
protocol Processors: AnyObject, Sendable {
  /// Puts every CPU into its reset state, the first one at the kernel's entry. None may be running.
  func reset(entry: BootEntry) throws(StartError)
  func start() throws(SystemError)
  /// Has them stop soon. May be called from any thread, a CPU's own included.
  func requestStop()
  /// Returns when none runs. Not for a CPU's own thread.
  func stop()
  /// The kernel's numbers of the threads that run them, in their order; empty while there are none.
  var threadIDs: [Int] { get }
  /// Begins to measure how long exits keep CPUs out of the guest, anew, or ends that.
  func measureExits(_ isOn: Bool)
  /// In the CPUs' order; empty while nothing is measured.
  var exitSummaries: [ExitSummary] { get }
}

extension Processors {
  var threadIDs: [Int] { [] }
  func measureExits(_ isOn: Bool) {}
  var exitSummaries: [ExitSummary] { [] }
}

/// The clock by which a guest's time goes.
protocol MachineClock: AnyObject, Sendable {
  /// In nanoseconds, never going back.
  var now: UInt64 { get }
  /// A timer that goes by it.
  func makeTimer() throws(SystemError) -> any OneShotTimer
}
