import Glibc
import Linux
import Testing

@testable import KVM

/// Tests events that KVM handles without an exit: the guest's doorbell writes, and interrupts for the guest.
@Suite(.serialized, .enabled(if: TestGuest.isPossible, "/dev/kvm cannot be used here"), .timeLimit(.minutes(5)))
struct EventTests {
  private func taken(_ event: borrowing EventDescriptor) -> Int {
    event.take() ? 1 : 0
  }

  @Test("a write to a bound address signals the eventfd without an exit, and a read does not")
  func aDoorbellIsRungWithoutAnExit() throws {
    // mov [ebx], al; mov [ebx], ax; mov [ebx], eax; mov [ebx + 4], eax
    let ring: [UInt8] = [0x88, 0x03, 0x66, 0x89, 0x03, 0x89, 0x03, 0x89, 0x43, 0x04]
    let guest = try TestGuest(ring + TestGuest.done)
    let event = try EventDescriptor()
    try guest.machine.bind(event.rawValue, toWriteAt: TestGuest.device)
    #expect(try guest.untilDone() == [.memoryWrite(address: TestGuest.device + 4, width: 4, value: 0)])
    var rung = taken(event)
    #expect(rung == 1)
    // A read does not signal.
    guest.store([0x8b, 0x03] + TestGuest.done, at: TestGuest.code)
    try guest.enter()
    #expect(try guest.untilDone() == [.memoryRead(address: TestGuest.device, width: 4)])
    rung = taken(event)
    #expect(rung == 0)
    try guest.machine.unbind(event.rawValue, fromWriteAt: TestGuest.device)
    guest.store(ring + TestGuest.done, at: TestGuest.code)
    try guest.enter()
    #expect(try guest.untilDone().count == 4)
    rung = taken(event)
    #expect(rung == 0)
  }

  @Test("unbinding an unbound doorbell and binding a bad descriptor are errors")
  func unbindingWhatIsNotBoundIsAnError() throws {
    let guest = try TestGuest(TestGuest.done)
    let event = try EventDescriptor()
    #expect(throws: KVMError.self) { try guest.machine.unbind(event.rawValue, fromWriteAt: 0xd000_0000) }
    #expect(throws: KVMError.self) { try guest.machine.bind(-1, toWriteAt: 0xd000_0000) }
  }

  // MARK: Interrupts

  private static let table: UInt64 = 0x4000

  /// A guest with its local APIC enabled that waits in HLT. The handler of vector 0x40 writes 0x40 to port 0x80 and
  /// ends the interrupt; the handler of vector 0x41 does the same with its own number. A handler does not return but
  /// waits for the next interrupt, because a KVM that emulates every instruction lacks IRET for 32-bit code.
  private func interruptible() throws -> TestGuest {
    let guest = try TestGuest(
      [0xc7, 0x05] + TestGuest.little(0xfee0_00f0) + TestGuest.little(0x1ff)  // software enable
        + [0xbc] + TestGuest.little(0x8000)  // mov esp
        + [0x0f, 0x01, 0x1d] + TestGuest.little(0x3ff0) + [0xfb]  // lidt; sti
        + [0xe6, 0x81, 0xf4, 0xeb, 0xfd])  // out 0x81, al; hlt; jmp to the hlt
    guest.store([0xff, 0x07] + TestGuest.little(UInt32(Self.table)), at: 0x3ff0)
    for vector in [0x40, 0x41] as [UInt8] {
      let handler = 0x1100 + UInt64(vector - 0x40) * 0x40
      guest.store(
        [UInt8(truncatingIfNeeded: handler), UInt8(handler >> 8), 0x08, 0, 0, 0x8e, 0, 0],
        at: Self.table + UInt64(vector) * 8)
      guest.store(
        [0xb0, vector, 0xe6, 0x80, 0xc7, 0x05] + TestGuest.little(0xfee0_00b0) + TestGuest.little(0)
          + [0xbc] + TestGuest.little(0x8000) + [0xfb, 0xf4, 0xeb, 0xfd],
        at: handler)
    }
    #expect(try guest.next() == .portWrite(port: 0x81, width: 1, value: 0))
    return guest
  }

  private let message: UInt64 = 0xfee0_0000

  /// Returns whether the host's CPU can run guests (vmx or svm), by the same rule as Images/lab.
  private func hostVirtualizes() throws -> Bool {
    let text = try FileDescriptor(opening: "/proc/cpuinfo", O_RDONLY).read(count: 1 << 16) ?? []
    return String(decoding: text, as: UTF8.self).split { " \t\n".contains($0) }.contains { $0 == "vmx" || $0 == "svm" }
  }

  @Test("a signalled message reaches the local APIC") func aMessageReachesTheLocalAPIC() throws {
    let guest = try interruptible()
    for vector in [0x40, 0x41, 0x40] as [UInt32] {
      guest.machine.signal(address: message, data: vector)
      let exit = try guest.next()
      #expect(exit == .portWrite(port: 0x80, width: 1, value: UInt64(vector)))
    }
  }

  @Test("an eventfd sends the current message of its route") func anEventSendsTheMessageOfItsRoute() throws {
    let guest = try interruptible()
    let routing = guest.machine.routing
    let event = try EventDescriptor()
    let gsi = routing.allocate()
    #expect(gsi == UInt32(TestGuest.ioapicPins))
    #expect(routing.allocate() == gsi + 1)
    try routing.set(gsi, address: message, data: 0x40)
    try routing.attach(event.rawValue, to: gsi)
    event.signal()
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x40))
    // The route gets another message, and there is a second route.
    try routing.set(gsi + 1, address: message, data: 0x40)
    try routing.set(gsi, address: message, data: 0x41)
    event.signal()
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x41))
    // A detached eventfd sends nothing. Later, an eventfd whose route is cleared sends nothing. The next interrupt is
    // the one that is signalled directly.
    try routing.detach(event.rawValue, from: gsi)
    event.signal()
    guest.machine.signal(address: message, data: 0x40)
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x40))
    event.take()
    try routing.attach(event.rawValue, to: gsi)
    routing.clear(gsi)
    // The kernel may retry this signal later. The route must therefore stay cleared from here on.
    event.signal()
    guest.machine.signal(address: message, data: 0x40)
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x40))
    #expect(throws: KVMError.self) { try routing.detach(-1, from: gsi) }
    routing.free(gsi)
    #expect(routing.allocate() == gsi)
  }

  /// An EOI causes an exit only for a level-triggered interrupt that is in a pin's route.
  @Test("the EOI of a pin's level-triggered interrupt causes an exit") func theEndOfAPinsInterruptIsAnExit() throws {
    let guest = try interruptible()
    let level: UInt32 = 1 << 15 | 1 << 14
    try guest.machine.routing.set(4, address: message, data: 0x40 | level)
    guest.machine.signal(address: message, data: 0x40 | level)
    let exits = [try guest.next(), try guest.next()]
    let inOrder = [VMExit.portWrite(port: 0x80, width: 1, value: 0x40), .endOfInterrupt(vector: 0x40)]
    // A KVM that emulates every instruction ends an interrupt when it delivers it. The EOI exit may then come before
    // the handler's write.
    let isEmulated = try !hostVirtualizes()
    #expect(exits == inOrder || isEmulated && exits == inOrder.reversed())
    guest.machine.signal(address: message, data: 0x41)
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x41))
    guest.machine.routing.clear(4)
    guest.machine.signal(address: message, data: 0x41)
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x41))
  }

  /// The kernel takes the whole table at once, so a bad entry must not stay in it.
  @Test("a route that the kernel refuses does not affect the others") func aRefusedRouteLeavesTheOthers() throws {
    let guest = try interruptible()
    let routing = guest.machine.routing
    let event = try EventDescriptor()
    try routing.set(30, address: message, data: 0x40)
    try routing.attach(event.rawValue, to: 30)
    #expect(throws: KVMError.self) { try routing.set(100_000, address: message, data: 0x41) }
    try routing.set(30, address: message, data: 0x41)
    event.signal()
    #expect(try guest.next() == .portWrite(port: 0x80, width: 1, value: 0x41))
    #expect(throws: KVMError.self) { try routing.set(100_000, address: message, data: 0x41) }
  }
}

@Suite struct KVMSystemTests {
  @Test("a file that is not /dev/kvm is refused with its name") func whatIsNoKVMIsRefused() {
    #expect(throws: KVMError.call(SystemError("open", "/dev/nosuch", code: 2))) { try KVMSystem(path: "/dev/nosuch") }
    #expect(throws: KVMError.self) { try KVMSystem(path: "/dev/null") }
  }

  @Test(
    "the supported CPUID entries include the basic leaves",
    .enabled(if: TestGuest.isPossible, "/dev/kvm cannot be used here"))
  func itsSupportedSetHasTheBasicLeaves() throws {
    let system = try KVMSystem()
    #expect(system.processorLimit >= 1)
    let entries = try system.supportedProcessorIdentification()
    for function in [0, 1, 0x8000_0000] as [UInt32] { #expect(entries.contains { $0.function == function }) }
    #expect(system.extent(of: 1 << 30) == 0)
  }
}
