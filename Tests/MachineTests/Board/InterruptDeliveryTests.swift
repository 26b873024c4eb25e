import Hardware
import KVM
import Linux
import Passthrough
import TestSupport
import Testing
import VTd

@testable import Machine

/// Sends messages from a source to the local APIC of a real CPU, with and without a remapper in between.
@Suite(.serialized, .enabled(if: APICGuest.isPossible, "/dev/kvm cannot be used here"), .timeLimit(.minutes(5)))
struct InterruptDeliveryTests {
  private let requester = Requester(id: RequesterID(bus: 0, device: 2, function: 0), busMasterEnable: true)

  private func message(_ vector: UInt32) -> InterruptMessage { InterruptMessage(address: 0xfee0_0000, data: vector) }

  @Test("a route sends the message that was set last, and nothing while no message is set")
  func aRouteSendsWhatIsSet() throws {
    let guest = try APICGuest()
    let route = guest.delivery.makeRoute(for: requester)
    route.signal()
    route.set(message(0x41))
    route.signal()
    #expect(try guest.requests() == [0x41])
    route.set(message(0x42))
    route.signal()
    #expect(try guest.requests() == [0x41, 0x42])
    route.set(nil)
    route.signal()
    route.set(message(0x43))
    #expect(try guest.requests() == [0x41, 0x42])
    route.signal()
    #expect(try guest.requests() == [0x41, 0x42, 0x43])
  }

  @Test("routes return their GSIs when they are freed")
  func manyRoutesComeAndGo() throws {
    let guest = try APICGuest()
    let delivery = guest.delivery
    for round in 0..<3 as Range<UInt32> {
      let routes = (0..<16).map { _ in delivery.makeRoute(for: requester) }
      for (index, route) in routes.enumerated() { route.set(message(0x40 + 16 * round + UInt32(index))) }
      for case let route as any EventRoute in routes.prefix(8) { #expect(route.event() != nil) }
      for route in routes { route.signal() }
      #expect(try guest.requests() == Set(0x40..<0x50 + 16 * round))
    }
    // Every GSI is free again: the first one after the IOAPIC's pins is 24.
    #expect(guest.machine.routing.allocate() == 24)
  }

  @Test("a pin waits for an EOI only if its message is level-triggered, and only for that message's vector")
  func aLevelTriggeredPinKnowsItsVector() throws {
    let guest = try APICGuest()
    let pin = guest.delivery.makePinRoute(pin: 16, requester: requester)
    #expect(!pin.ends(vector: 0x41))
    pin.set(message(0x41 | 1 << 15 | 1 << 14))
    #expect(pin.ends(vector: 0x41))
    #expect(!pin.ends(vector: 0x42))
    pin.signal()
    #expect(try guest.requests() == [0x41])
    pin.set(message(0x42))
    #expect(!pin.ends(vector: 0x42))
    pin.signal()
    pin.set(nil)
    pin.signal()
    #expect(try guest.requests() == [0x41, 0x42])
  }

  @Test("a level-triggered pin keeps its route in the kernel's table while it is masked") func aMaskedPinKeepsItsRoute()
    throws
  {
    let interrupts = RecordingInterrupts()
    let delivery = InterruptDelivery(
      localInterrupts: interrupts, memory: try GuestMemory(size: 0x1000, lowLimit: 0x1000))
    let pin = delivery.makePinRoute(pin: 9, requester: requester)
    let level = message(0x41 | 1 << 15)
    pin.set(level)
    pin.set(nil)
    #expect(!pin.ends(vector: 0x41))
    pin.signal()
    #expect(interrupts.sent.isEmpty && interrupts.levelTriggered == [9: level])
    pin.set(message(0x42))
    #expect(interrupts.levelTriggered == [:])
    pin.set(level)
    pin.reset()
    #expect(interrupts.levelTriggered == [:])
  }

  /// The remappable message is set before remapping is enabled.
  @Test("with remapping on, a route sends the interrupt of its table entry, and nothing if there is no entry")
  func aRemapperComesBetween() throws {
    let guest = try APICGuest()
    let delivery = guest.delivery
    let unit = try RemappingUnit(
      options: UnitOptions(), memory: guest.memory, faultEvent: delivery.makeUnremappedRoute(),
      invalidationEvent: delivery.makeUnremappedRoute(), messages: delivery, parking: SemaphoreParking())
    delivery.remap(by: unit)
    let compatible = delivery.makeRoute(for: requester)
    let remappable = delivery.makeRoute(for: requester)
    compatible.set(message(0x41))
    // Handle 3, no subhandle.
    remappable.set(InterruptMessage(address: 0xfee0_0010 | 3 << 5, data: 0))
    compatible.signal()
    #expect(try guest.requests() == [0x41])

    // IRTE 3: present, vector 0x55, APIC 0. Table of 256 entries at 0x8000; SIRTP, then IRE.
    _ = guest.memory.storeUInt64(0x55 << 16 | 1, at: 0x8030)
    unit.write(offset: 0xb8, width: .quadword, value: 0x8007)
    unit.write(offset: 0x18, width: .doubleword, value: 1 << 24)
    unit.write(offset: 0x18, width: .doubleword, value: 1 << 25)
    #expect(unit.read(offset: 0x1c, width: .doubleword) >> 24 & 3 == 3)
    compatible.set(message(0x42))
    compatible.signal()
    remappable.signal()
    #expect(try guest.requests() == [0x41, 0x55])

    // A device's own write sends the same message. Handle 4 has no entry.
    delivery.send(InterruptMessage(address: 0xfee0_0010 | 3 << 5, data: 0), from: requester.id)
    delivery.send(InterruptMessage(address: 0xfee0_0010 | 4 << 5, data: 0), from: requester.id)
    #expect(try guest.requests() == [0x41, 0x55])

    // With remapping off again, messages pass unchanged.
    unit.write(offset: 0x18, width: .doubleword, value: 0)
    compatible.signal()
    #expect(try guest.requests() == [0x41, 0x42, 0x55])
  }
}

/// A CPU with its local APIC enabled and its interrupts disabled. A vector that arrives stays in the interrupt request
/// register, which the guest's code reports through port 0x80.
final class APICGuest {
  static let isPossible: Bool = (try? KVMSystem()) != nil

  let memory: GuestMemory
  let machine: VirtualMachine
  let delivery: InterruptDelivery
  private let vcpu: VCPU

  init() throws {
    memory = try GuestMemory(size: 1 << 20, lowLimit: 1 << 31)
    let system = try KVMSystem()
    machine = try VirtualMachine(system: system, memory: memory, ioapicPins: 24)
    delivery = InterruptDelivery(
      localInterrupts: KVMLocalInterrupts(machine, try EventLoop(name: "relay test")), memory: memory)
    vcpu = try VCPU(id: 0, of: machine)
    let identification = try ProcessorIdentification(system: system, processorCount: 1)
    try vcpu.setProcessorIdentification(identification.entries(for: 0))
    var code: [UInt8] = [0xba, 0x80, 0, 0, 0]  // mov edx, 0x80
    code += [0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0, 0]  // spurious interrupt vector: software enable
    // The code reads the eight words of the request register in a loop.
    for word in 0..<8 as Range<UInt8> { code += [0xa1, word << 4, 0x02, 0xe0, 0xfe, 0xef] }
    let back = code.count - 15 + 2
    code += [0xeb, UInt8(bitPattern: Int8(-back))]
    _ = memory.write(code, to: 0x1000)
    try vcpu.enter(.protectedMode(instructionPointer: 0x1000, eax: 0, ebx: 0), from: try vcpu.readState())
    // The APIC accepts nothing before the guest has enabled it.
    #expect(try requests().isEmpty)
  }

  /// Returns the vectors in the interrupt request register.
  func requests() throws -> Set<UInt32> {
    var vectors: Set<UInt32> = []
    var word: UInt32 = 0
    while word < 8 {
      switch try vcpu.next() {
      case .portWrite(port: 0x80, width: 4, let value):
        for bit in 0..<32 as Range<UInt32> where value >> UInt64(bit) & 1 != 0 { vectors.insert(word * 32 + bit) }
        word += 1
      case .interrupted: continue
      case let other:
        Issue.record("\(other)")
        return vectors
      }
    }
    return vectors
  }
}
