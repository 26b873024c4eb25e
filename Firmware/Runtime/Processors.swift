/// Application processors: INIT and start-up IPIs start them. Then they halt until an interrupt or work arrives.
/// Intel SDM volume 3, 11.4 "Multiple-Processor (MP) Initialization".

enum Processors {
  /// The address to which the trampoline is copied. The start-up IPI contains the number of this page.
  private static let trampoline: UInt64 = 0x8000
  nonisolated(unsafe) private static var ready: UInt32 = 0

  static var readyCount: UInt32 {
    unsafe withUnsafePointer(to: &ready) { load32(UInt64(UInt(bitPattern: $0))) }
  }

  static func countReady() { ready &+= 1 }

  /// The work for an application processor, and how many pieces of work the processors have finished.
  nonisolated(unsafe) fileprivate static var work: (@convention(c) () -> Void)?
  nonisolated(unsafe) fileprivate static var finished: UInt32 = 0

  static var finishedCount: UInt32 {
    unsafe withUnsafePointer(to: &finished) { load32(UInt64(UInt(bitPattern: $0))) }
  }

  /// Gives work to a started processor. `finishedCount` increases when the work is finished.
  static func give(_ work: @convention(c) @escaping () -> Void, to identifier: UInt32) {
    self.work = work
    LocalAPIC.sendFixed(vector: Interrupts.ping, to: identifier)
  }

  /// Starts the first processor of the MADT that is not this one.
  /// - Returns: its APIC identifier, or nil if there is none or it does not start.
  static func startAnother(patience: UInt64) -> UInt32? {
    bootProcessor = LocalAPIC.identifier
    var found: UInt32?
    _ = ACPI.forEachProcessor { if $0 != bootProcessor, found == nil { found = $0 } }
    guard let found, start(found, patience: patience) else { return nil }
    return found
  }

  /// Starts one processor, and waits until it accepts interrupts.
  static func start(_ identifier: UInt32, patience: UInt64) -> Bool {
    for offset in 0..<sizeOfTrampoline() {
      store8(trampoline + offset, load8(addressOfTrampoline() + offset))
    }
    let before = readyCount
    LocalAPIC.sendInit(to: identifier)
    _ = wait(ticks: patience / 2000) { false }
    LocalAPIC.sendStartUp(page: UInt32(trampoline >> 12), to: identifier)
    if wait(ticks: patience / 10, until: { readyCount != before }) { return true }
    // Send the start-up IPI a second time, as the manual recommends. A processor that has started ignores it.
    LocalAPIC.sendStartUp(page: UInt32(trampoline >> 12), to: identifier)
    return wait(ticks: patience, until: { readyCount != before })
  }
}

/// Runs on an application processor for ever: carries out work, and answers each ping with a pong to the boot
/// processor.
@_cdecl("applicationMain")
func applicationMain(index: UInt32) {
  Interrupts.load()
  LocalAPIC.start()
  Processors.countReady()
  var answered = Interrupts.count(Interrupts.ping)
  while true {
    waitForInterrupt()
    // The EOI must reach the VMM before the processor halts again. A /dev/kvm that emulates instructions delivered it
    // only at the next VM exit. This read causes an exit; no device answers at the port.
    _ = portRead8(0x80)
    let pings = Interrupts.count(Interrupts.ping)
    if pings != answered {
      answered = pings
      if let work = Processors.work {
        Processors.work = nil
        work()
        Processors.finished &+= 1
      }
      LocalAPIC.sendFixed(vector: Interrupts.pong, to: bootProcessor)
    }
  }
}

/// The APIC identifier that receives pongs.
nonisolated(unsafe) var bootProcessor: UInt32 = 0
