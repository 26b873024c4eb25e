/// Application processors: started by INIT and start-up IPIs, then asleep until interrupts come, or work is given.
/// Intel SDM volume 3, 11.4 "Multiple-Processor (MP) Initialization".

enum Processors {
  /// Where the trampoline is copied to: the page that the start-up IPI names.
  private static let trampoline: UInt64 = 0x8000
  nonisolated(unsafe) private static var ready: UInt32 = 0

  static var readyCount: UInt32 {
    unsafe withUnsafePointer(to: &ready) { load32(UInt64(UInt(bitPattern: $0))) }
  }

  static func countReady() { ready &+= 1 }

  /// What the application processors are to do once, and how often one has finished.
  nonisolated(unsafe) fileprivate static var work: (@convention(c) () -> Void)?
  nonisolated(unsafe) fileprivate static var finished: UInt32 = 0

  static var finishedCount: UInt32 {
    unsafe withUnsafePointer(to: &finished) { load32(UInt64(UInt(bitPattern: $0))) }
  }

  /// Has a started processor do something; `finishedCount` says when it is done.
  static func give(_ work: @convention(c) @escaping () -> Void, to identifier: UInt32) {
    self.work = work
    LocalAPIC.sendFixed(vector: Interrupts.ping, to: identifier)
  }

  /// Starts the first processor of the MADT that is not this one.
  /// - Returns: its APIC identifier, or nil where there is none, or where it does not start.
  static func startAnother(patience: UInt64) -> UInt32? {
    bootProcessor = LocalAPIC.identifier
    var found: UInt32?
    _ = ACPI.forEachProcessor { if $0 != bootProcessor, found == nil { found = $0 } }
    guard let found, start(found, patience: patience) else { return nil }
    return found
  }

  /// Starts one processor, and waits until it takes interrupts.
  static func start(_ identifier: UInt32, patience: UInt64) -> Bool {
    for offset in 0..<sizeOfTrampoline() {
      store8(trampoline + offset, load8(addressOfTrampoline() + offset))
    }
    let before = readyCount
    LocalAPIC.sendInit(to: identifier)
    _ = wait(ticks: patience / 2000) { false }
    LocalAPIC.sendStartUp(page: UInt32(trampoline >> 12), to: identifier)
    if wait(ticks: patience / 10, until: { readyCount != before }) { return true }
    // Once more, as the manual advises; a processor that has started ignores it.
    LocalAPIC.sendStartUp(page: UInt32(trampoline >> 12), to: identifier)
    return wait(ticks: patience, until: { readyCount != before })
  }
}

/// What an application processor does for ever: it answers each ping with a pong to all others' common
/// counter, so the one that asked sees it.
@_cdecl("applicationMain")
func applicationMain(index: UInt32) {
  Interrupts.load()
  LocalAPIC.start()
  Processors.countReady()
  var answered = Interrupts.count(Interrupts.ping)
  while true {
    waitForInterrupt()
    // The end of an interrupt must leave the processor before it halts again: an emulator of instructions under
    // /dev/kvm was seen to keep it until another exit. Nothing answers at this port.
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

/// The identifier that pongs go to.
nonisolated(unsafe) var bootProcessor: UInt32 = 0
