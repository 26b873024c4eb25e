import CLinux
import Glibc
@testable import KVM
import Linux
import Synchronization
import Testing

@Suite(.serialized, .enabled(if: TestGuest.isPossible, "/dev/kvm cannot be used here"), .timeLimit(.minutes(5)))
struct VCPUTests {
  @Test("port writes of 1, 2 and 4 bytes are exits with their value") func portWritesOfEachWidth() throws {
    let guest = try TestGuest(
      [0xba] + TestGuest.little(0x1234)  // mov edx, 0x1234
        + [0xb8] + TestGuest.little(0xa1b2_c3d4)  // mov eax, 0xa1b2c3d4
        + [0xee, 0x66, 0xef, 0xef, 0xe6, 0x80]  // out dx, al; out dx, ax; out dx, eax; out 0x80, al
        + TestGuest.done)
    #expect(
      try guest.untilDone() == [
        .portWrite(port: 0x1234, width: 1, value: 0xd4), .portWrite(port: 0x1234, width: 2, value: 0xc3d4),
        .portWrite(port: 0x1234, width: 4, value: 0xa1b2_c3d4), .portWrite(port: 0x80, width: 1, value: 0xd4),
      ])
  }

  @Test("the answer of a port read reaches the register, in 1, 2 and 4 bytes") func portReadsOfEachWidth() throws {
    let guest = try TestGuest(
      [0xba] + TestGuest.little(0xfffc) + [0xb8] + TestGuest.little(0xa1b2_c3d4)
        + [0xec, 0xef]  // in al, dx; out dx, eax
        + [0x66, 0xed, 0xef]  // in ax, dx
        + [0xed, 0xef]  // in eax, dx
        + TestGuest.done)
    var answers: [UInt64] = [0xffff_ff11, 0xffff_2233, 0x4455_6677]
    let exits = try guest.untilDone { _ in answers.removeFirst() }
    #expect(
      exits == [
        .portRead(port: 0xfffc, width: 1), .portWrite(port: 0xfffc, width: 4, value: 0xa1b2_c311),
        .portRead(port: 0xfffc, width: 2), .portWrite(port: 0xfffc, width: 4, value: 0xa1b2_2233),
        .portRead(port: 0xfffc, width: 4), .portWrite(port: 0xfffc, width: 4, value: 0x4455_6677),
      ])
  }

  /// However many elements KVM returns at once, each is a separate exit, in order.
  @Test(
    "each element of a string output is a separate exit",
    arguments: [(1, [0xf3, 0x6e]), (2, [0xf3, 0x66, 0x6f]), (4, [0xf3, 0x6f])] as [(Int, [UInt8])])
  func stringOutput(width: Int, instruction: [UInt8]) throws {
    let count = 7
    let guest = try TestGuest(
      [0xfc, 0xba] + TestGuest.little(0x3f8) + [0xbe] + TestGuest.little(0x2000)  // cld; mov edx; mov esi
        + [0xb9] + TestGuest.little(UInt32(count)) + instruction  // mov ecx; rep outs
        + [0x89, 0xc8, 0xba] + TestGuest.little(0x80) + [0xef, 0x89, 0xf0, 0xef]  // out ecx, out esi
        + TestGuest.done)
    let bytes = (0..<count * width).map { UInt8($0 + 1) }
    guest.store(bytes, at: 0x2000)
    var expected: [VMExit] = (0..<count).map { index in
      var value: UInt64 = 0
      for byte in 0..<width { value |= UInt64(bytes[index * width + byte]) << (8 * UInt64(byte)) }
      return .portWrite(port: 0x3f8, width: width, value: value)
    }
    expected.append(.portWrite(port: 0x80, width: 4, value: 0))
    expected.append(.portWrite(port: 0x80, width: 4, value: 0x2000 + UInt64(count * width)))
    #expect(try guest.untilDone() == expected)
  }

  @Test(
    "each element of a string input is answered by a separate exit",
    arguments: [(1, [0xf3, 0x6c]), (2, [0xf3, 0x66, 0x6d]), (4, [0xf3, 0x6d])] as [(Int, [UInt8])])
  func stringInput(width: Int, instruction: [UInt8]) throws {
    let count = 5
    let guest = try TestGuest(
      [0xfc, 0xba] + TestGuest.little(0x60) + [0xbf] + TestGuest.little(0x3000)  // mov edi
        + [0xb9] + TestGuest.little(UInt32(count)) + instruction + TestGuest.done)
    var given: UInt64 = 0
    let exits = try guest.untilDone { _ in
      given += 1
      return 0x4030_2010 + given * 0x0101_0101
    }
    #expect(exits == Array(repeating: .portRead(port: 0x60, width: width), count: count))
    var expected: [UInt8] = []
    for index in 1...count { expected += TestGuest.little(0x4030_2010 + UInt32(index) * 0x0101_0101).prefix(width) }
    #expect(guest.load(0x3000, count * width + 1) == expected + [0])
  }

  @Test("memory writes of 1, 2 and 4 bytes are exits with their value") func memoryWritesOfEachWidth() throws {
    let guest = try TestGuest(
      [0xb8] + TestGuest.little(0x8899_aabb)
        + [0x88, 0x03, 0x66, 0x89, 0x43, 0x02, 0x89, 0x43, 0x04]  // mov [ebx], al; [ebx + 2], ax; [ebx + 4], eax
        + TestGuest.done)
    #expect(
      try guest.untilDone() == [
        .memoryWrite(address: 0xd000_0000, width: 1, value: 0xbb),
        .memoryWrite(address: 0xd000_0002, width: 2, value: 0xaabb),
        .memoryWrite(address: 0xd000_0004, width: 4, value: 0x8899_aabb),
      ])
  }

  @Test("the answer of a memory read reaches the register, in 1, 2 and 4 bytes") func memoryReadsOfEachWidth() throws {
    let guest = try TestGuest(
      [0xba] + TestGuest.little(0x80) + [0xb8] + TestGuest.little(0xa1b2_c3d4)
        + [0x8a, 0x03, 0xef]  // mov al, [ebx]; out dx, eax
        + [0x66, 0x8b, 0x43, 0x02, 0xef] + [0x8b, 0x43, 0x04, 0xef] + TestGuest.done)
    var answers: [UInt64] = [0x11, 0x2233, 0x4455_6677]
    let exits = try guest.untilDone { _ in answers.removeFirst() }
    #expect(
      exits == [
        .memoryRead(address: 0xd000_0000, width: 1), .portWrite(port: 0x80, width: 4, value: 0xa1b2_c311),
        .memoryRead(address: 0xd000_0002, width: 2), .portWrite(port: 0x80, width: 4, value: 0xa1b2_2233),
        .memoryRead(address: 0xd000_0004, width: 4), .portWrite(port: 0x80, width: 4, value: 0x4455_6677),
      ])
  }

  /// 64-bit code: the long-mode entry and accesses of 8 bytes, one of them across two pages of a device.
  @Test("8-byte accesses work in long mode, also across two pages") func quadwordsInLongMode() throws {
    let guest = try TestGuest([])
    let device: UInt64 = 0x20_0000
    guest.store(
      [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0x48, 0x89, 0x03]  // mov rax, 0x0807…01; mov [rbx], rax
        + [0x48, 0x8b, 0x43, 0x08, 0x48, 0x89, 0x83, 0xfc, 0x0f, 0, 0]  // mov rax, [rbx + 8]; mov [rbx + 0xffc], rax
        + [0x48, 0x8b, 0x83, 0xfe, 0x1f, 0, 0, 0x48, 0x89, 0x06]  // mov rax, [rbx + 0x1ffe]; mov [rsi], rax
        + TestGuest.done, at: TestGuest.code)
    // An identity mapping of the first 4 MiB, in pages of 2 MiB.
    _ = guest.memory.storeUInt64(0x1_1003, at: 0x1_0000)
    _ = guest.memory.storeUInt64(0x1_2003, at: 0x1_1000)
    _ = guest.memory.storeUInt64(0x83, at: 0x1_2000)
    _ = guest.memory.storeUInt64(device | 0x83, at: 0x1_2008)
    _ = guest.memory.storeUInt64(0x00af_9b00_0000_ffff, at: 0x1_3008)
    _ = guest.memory.storeUInt64(0x00cf_9300_0000_ffff, at: 0x1_3010)
    guest.store([0x48, 0xc7, 0xc3] + TestGuest.little(UInt32(device)) + [0xe9], at: 0x1_4000)  // mov rbx, …; jmp code
    guest.store(TestGuest.little(UInt32(bitPattern: Int32(TestGuest.code) - 0x1_400c)), at: 0x1_4008)
    try guest.vcpu.enter(
      .longMode(
        instructionPointer: 0x1_4000, rsi: 0x5000, pageTableRoot: 0x1_0000, descriptorTableBase: 0x1_3000,
        descriptorTableLimit: 0x17, codeSelector: 0x08, dataSelector: 0x10), from: guest.reset)
    var written: [UInt64: UInt8] = [:]
    var readBytes = 0
    // Each byte of a read is the low byte of its address.
    let exits = try guest.untilDone { exit in
      guard case .memoryRead(let address, let width) = exit else { return 0 }
      readBytes += width
      return (0..<UInt64(width)).reduce(0) { $0 | ((address + $1) & 0xff) << (8 * $1) }
    }
    for case .memoryWrite(let address, let width, let value) in exits {
      for byte in 0..<UInt64(width) { written[address + byte] = UInt8(truncatingIfNeeded: value >> (8 * byte)) }
    }
    #expect(exits.first == .memoryWrite(address: device, width: 8, value: 0x0807_0605_0403_0201))
    #expect(exits.dropFirst().first == .memoryRead(address: device + 8, width: 8))
    #expect((0..<8 as Range<UInt64>).map { written[device + 0xffc + $0] } == [8, 9, 10, 11, 12, 13, 14, 15])
    #expect(written.count == 16)
    #expect(readBytes == 16)
    #expect(guest.load(0x5000, 8) == [0xfe, 0xff, 0, 1, 2, 3, 4, 5])
  }

  @Test("a triple fault is a shutdown exit") func aTripleFaultIsAShutdown() throws {
    let guest = try TestGuest([0x0f, 0x0b])  // ud2, with no interrupt table
    #expect(try guest.next() == .shutdown)
  }

  @Test("a requested exit interrupts each run until it is cleared") func anExitRequestComesBackAtOnce() throws {
    let guest = try TestGuest([0xe6, 0x80] + TestGuest.done)
    guest.vcpu.requestExit()
    for _ in 0..<3 { #expect(try guest.vcpu.next() == .interrupted) }
    guest.vcpu.clearExitRequest()
    #expect(try guest.untilDone() == [.portWrite(port: 0x80, width: 1, value: 0)])
  }

  /// One CPU runs and one waits in HLT; both must return when another thread asks.
  @Test(
    "another thread can interrupt a running and a halted CPU",
    arguments: [[0xeb, 0xfe], [0xf4, 0xeb, 0xfd]] as [[UInt8]])
  func anotherThreadCallsTheCPUBack(code: [UInt8]) throws {
    final class Shared: Sendable {
      let vcpu: VCPU
      let exit = Mutex<VMExit?>(nil)
      init(vcpu: VCPU) { self.vcpu = vcpu }
    }
    Thread.installKick()
    let guest = try TestGuest(code)
    let shared = Shared(vcpu: guest.vcpu)
    let thread = try Thread(name: "vCPU") {
      let exit = try? shared.vcpu.next()
      shared.exit.withLock { $0 = exit }
    }
    // This is time to enter the guest. If it is too short, the request comes before the guest runs, and must work, too.
    usleep(20_000)
    shared.vcpu.requestExit()
    thread.kick()
    thread.join()
    #expect(shared.exit.withLock { $0 } == .interrupted)
  }

  // MARK: Reset

  /// `out dx, eax`: shows EAX at the start of the code.
  private static let report: [UInt8] = [0xba] + TestGuest.little(0x99) + [0xef] + TestGuest.done

  /// The CPU is reset in the middle of an instruction that waits for its answer or has more elements. Nothing of that
  /// instruction may remain: no exit, and no register that it would have written.
  @Test(
    "a reset discards an unfinished access",
    arguments: [
      [0xed],  // in eax, dx
      [0x8b, 0x03],  // mov eax, [ebx]
      [0x89, 0x03],  // mov [ebx], eax
      [0xef],  // out dx, eax
      [0xb9, 5, 0, 0, 0, 0xf3, 0x6e],  // mov ecx, 5; rep outsb
      [0xb9, 5, 0, 0, 0, 0xf3, 0x6c],  // mov ecx, 5; rep insb
    ] as [[UInt8]])
  func aResetForgetsAnUnfinishedAccess(code: [UInt8]) throws {
    let guest = try TestGuest([0xba] + TestGuest.little(0x55) + code + [0xb0, 0x66] + TestGuest.done)
    guest.store(Self.report, at: 0x1800)
    _ = try guest.next()
    try guest.vcpu.restore(guest.reset)
    try guest.enter(at: 0x1800, eax: 0x1122_3344)
    #expect(try guest.untilDone() == [.portWrite(port: 0x99, width: 4, value: 0x1122_3344)])
  }

  /// CR0.CD and NW: bits 30 and 29. KVM honours them while the machine has a device with non-coherent DMA.
  @Test func `the boot CPU starts with its caches enabled`() throws {
    let guest = try TestGuest(TestGuest.done)
    #expect(try guest.vcpu.readState().system.cr0 & 3 << 29 == 0)
    // mov eax, cr0; mov edx, 0x99; out dx, eax
    let reading = try TestGuest([0x0f, 0x20, 0xc0, 0xba] + TestGuest.little(0x99) + [0xef] + TestGuest.done)
    let exits = try reading.untilDone()
    guard case .portWrite(0x99, 4, let value)? = exits.first else {
      Issue.record("\(exits)")
      return
    }
    #expect(value & (3 << 29 | 1) == 1)
    try guest.vcpu.enter(
      .longMode(
        instructionPointer: 0x1000, rsi: 0, pageTableRoot: 0x8000, descriptorTableBase: 0, descriptorTableLimit: 0x17,
        codeSelector: 8, dataSelector: 0x10), from: guest.reset)
    #expect(try guest.vcpu.readState().system.cr0 & 3 << 29 == 0)
    #expect(guest.reset.system.cr0 & 3 << 29 != 0, "a reset leaves them set")
  }

  @Test("restoring the reset state resets registers, MSRs and the local APIC") func restoringPutsTheStateBack() throws {
    let guest = try TestGuest(
      // SYSENTER_CS, an ordinary MSR: mov ecx, 0x174; mov eax, 0x1234; xor edx, edx; wrmsr
      [0xb9] + TestGuest.little(0x174) + [0xb8] + TestGuest.little(0x1234) + [0x31, 0xd2, 0x0f, 0x30]
        // The local APIC: software enable, and a task priority.
        + [0xc7, 0x05] + TestGuest.little(0xfee0_00f0) + TestGuest.little(0x1ff)
        + [0xc7, 0x05] + TestGuest.little(0xfee0_0080) + TestGuest.little(0x20)
        // CR2, and DR0.
        + [0x0f, 0x22, 0xd0, 0x0f, 0x23, 0xc0]
        + [0xbd] + TestGuest.little(0x5555_5555)  // mov ebp
        + TestGuest.done)
    #expect(try guest.untilDone().isEmpty)
    let used = try guest.vcpu.readState()
    #expect(used.registers.rbp == 0x5555_5555)
    #expect(used.system.cr2 == 0x1234)
    #expect(used.modelSpecific.first { $0.index == 0x174 }?.data == 0x1234)
    #expect(used.localAPIC.words[0xf0 / 4] == 0x1ff)
    try guest.vcpu.restore(guest.reset)
    let state = try guest.vcpu.readState()
    let reset = guest.reset
    #expect(bytes(state.registers) == bytes(reset.registers))
    #expect(bytes(state.system) == bytes(reset.system))
    #expect(bytes(state.debug) == bytes(reset.debug))
    #expect(bytes(state.processing) == bytes(reset.processing))
    #expect(state.localAPIC.words == reset.localAPIC.words)
    #expect(state.modelSpecific.first { $0.index == 0x174 }?.data == 0)
    #expect(state.modelSpecific.map(\.index) == reset.modelSpecific.map(\.index))
    // The CPU can run again.
    try guest.enter()
    #expect(try guest.untilDone().isEmpty)
  }

  private func bytes<Value>(_ value: Value) -> [UInt8] { withUnsafeBytes(of: value) { Array($0) } }
}

extension kvm_lapic_state {
  var words: [UInt32] {
    withUnsafeBytes(of: self) { raw in
      stride(from: 0, to: raw.count, by: 4).map { raw.load(fromByteOffset: $0, as: UInt32.self) }
    }
  }
}
