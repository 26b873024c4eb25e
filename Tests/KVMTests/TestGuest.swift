import Glibc
import Linux
import Testing

@testable import KVM

/// A machine with one CPU and 1 MiB of RAM that runs a few bytes of code.
final class TestGuest {
  /// Whether this host allows running guests.
  static let isPossible: Bool = {
    guard (try? KVMSystem()) != nil else { return false }
    return true
  }()

  static let code: UInt64 = 0x1000
  /// An address that only the test answers.
  static let device: UInt64 = 0xd000_0000
  static let ioapicPins = 24

  let memory: GuestMemory
  let system: KVMSystem
  let machine: VirtualMachine
  let vcpu: VCPU
  let reset: VCPUState

  /// 32-bit code without paging; EAX and EBX hold 0 and `device`.
  init(_ code: [UInt8]) throws {
    memory = try GuestMemory(size: 1 << 20, lowLimit: 1 << 31)
    system = try KVMSystem()
    machine = try VirtualMachine(system: system, memory: memory, ioapicPins: Self.ioapicPins)
    vcpu = try VCPU(id: 0, of: machine)
    let identification = try ProcessorIdentification(system: system, processorCount: 1)
    try vcpu.setProcessorIdentification(identification.entries(for: 0))
    reset = try vcpu.readState()
    // Flat descriptors, for interrupts: 0x08 code, 0x10 data.
    store([0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0, 0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0], at: 8)
    store(code, at: Self.code)
    try enter()
  }

  func enter(at address: UInt64 = TestGuest.code, eax: UInt32 = 0) throws {
    try vcpu.enter(
      .protectedMode(instructionPointer: UInt32(address), eax: eax, ebx: UInt32(Self.device)), from: reset)
  }

  func store(_ bytes: [UInt8], at address: UInt64) { _ = memory.write(bytes.span.bytes, to: address) }

  func load(_ address: UInt64, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    var raw = span.mutableBytes
    _ = memory.read(from: address, into: &raw)
    return bytes
  }

  /// Returns the next exit, ignoring interruptions by signals of the host.
  func next() throws -> VMExit {
    while true {
      let exit = try vcpu.next()
      if exit != .interrupted { return exit }
    }
  }

  /// Returns the exits before the write to port 0xf4 that ends each test's code, and answers reads.
  func untilDone(limit: Int = 64, _ answer: (VMExit) -> UInt64 = { _ in 0 }) throws -> [VMExit] {
    var exits: [VMExit] = []
    while exits.count < limit {
      let exit = try next()
      switch exit {
      case .portWrite(port: 0xf4, _, _): return exits
      case .portRead, .memoryRead: vcpu.supply(answer(exit))
      case .portWrite, .memoryWrite, .endOfInterrupt: break
      default:
        exits.append(exit)
        return exits
      }
      exits.append(exit)
    }
    return exits
  }

  /// `out 0xf4, al`
  static let done: [UInt8] = [0xe6, 0xf4]

  static func little(_ value: UInt32) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
}
