import CLinux
import Glibc
import Linux

/// A virtual CPU. Only the thread that runs it may use it; `requestExit` alone may be called from any thread.
@safe
public final class VCPU: @unchecked Sendable {
  /// The rest of an exit that `next` returns in pieces.
  private enum Unfinished {
    case none
    /// Elements of a string instruction: the byte offset of the next one in the shared page, and the number left.
    case port(offset: Int, remaining: Int)
    /// Bytes of a memory access: the index of the next one, and their number.
    case memory(next: Int, count: Int)
  }

  public let id: Int
  let file: FileDescriptor
  private let machine: VirtualMachine
  private let shared: Mapping
  private let run: UnsafeMutablePointer<kvm_run>
  private var unfinished = Unfinished.none
  /// Width in bytes of the last read that `next` returned; `supply` answers it.
  private var pendingWidth = 0
  /// Whether the kernel is in the middle of an instruction. It completes port and memory accesses in the next KVM_RUN.
  private var accessPending = false

  public init(id: Int, of machine: VirtualMachine) throws(KVMError) {
    self.id = id
    self.machine = machine
    let answer = nestling_ioctl_value(machine.file.rawValue, KVM_CREATE_VCPU, UInt(id))
    if answer < 0 { throw .call(SystemError("KVM_CREATE_VCPU", "CPU \(id)", code: -answer)) }
    file = FileDescriptor(owning: answer)
    do {
      shared = try Mapping(of: file, size: machine.system.runSize)
    } catch {
      throw .call(error)
    }
    // SAFETY: the kernel's page begins with this structure, and the mapping is at least as long.
    unsafe run = shared.base.assumingMemoryBound(to: kvm_run.self)
  }

  /// Whether the processor has XCR0; KVM_GET_XCRS exists only then.
  var hasExtendedControl: Bool { machine.system.extent(of: Int(KVM_CAP_XCRS)) != 0 }

  func stateRegisterIndices() throws(KVMError) -> [UInt32] { try machine.system.stateRegisterIndices() }

  /// Makes the next KVM_RUN return at once: `next` returns `interrupted`. Any thread may call this. A KVM_RUN in
  /// progress returns only after a signal.
  public func requestExit() { unsafe run.pointee.immediate_exit = 1 }

  /// Cancels `requestExit`.
  public func clearExitRequest() { unsafe run.pointee.immediate_exit = 0 }

  /// Runs the guest until an exit that the caller must handle.
  /// - Throws: the error of KVM_RUN. A signal is not an error.
  public func next() throws(KVMError) -> VMExit {
    if let piece = nextPiece() { return piece }
    accessPending = false
    let answer = nestling_kvm_run(file.rawValue)
    if answer < 0 {
      if answer == -EINTR || answer == -EAGAIN { return .interrupted }
      throw .call(SystemError("KVM_RUN", "CPU \(id)", code: -answer))
    }
    // SAFETY, for the rest of this file: the kernel has filled the union's member that the exit reason selects.
    switch Int(unsafe run.pointee.exit_reason) {
    case KVM_EXIT_IO:
      accessPending = true
      unfinished = unsafe .port(offset: Int(run.pointee.io.data_offset), remaining: Int(run.pointee.io.count))
      return nextPiece() ?? .interrupted
    case KVM_EXIT_MMIO:
      accessPending = true
      unfinished = unsafe .memory(next: 0, count: min(8, Int(run.pointee.mmio.len)))
      return nextPiece() ?? .interrupted
    case KVM_EXIT_IOAPIC_EOI: return unsafe .endOfInterrupt(vector: run.pointee.eoi.vector)
    case KVM_EXIT_SHUTDOWN: return .shutdown
    case KVM_EXIT_HLT: return .halt
    case KVM_EXIT_INTR: return .interrupted
    case KVM_EXIT_SYSTEM_EVENT: return unsafe .systemEvent(type: run.pointee.system_event.type)
    case KVM_EXIT_INTERNAL_ERROR: return unsafe .internalError(suberror: run.pointee.internal.suberror)
    case KVM_EXIT_FAIL_ENTRY:
      return unsafe .entryFailed(reason: run.pointee.fail_entry.hardware_entry_failure_reason)
    default: return unsafe .unknown(reason: run.pointee.exit_reason)
    }
  }

  /// Completes the instruction that the CPU stopped in and discards its result. The CPU's state is about to be
  /// replaced; without this, the kernel would complete the old instruction into the new state
  /// (Documentation/virt/kvm/api.rst, KVM_RUN).
  func abandonAccess() {
    let immediate = unsafe run.pointee.immediate_exit
    defer { unsafe run.pointee.immediate_exit = immediate }
    unsafe run.pointee.immediate_exit = 1
    unfinished = .none
    // KVM reenters the guest, and so returns here, after 1024 elements of a string instruction.
    for _ in 0..<4096 where accessPending {
      accessPending = nestling_kvm_run(file.rawValue) >= 0
    }
    accessPending = false
  }

  /// Answers the read that `next` returned last.
  public func supply(_ value: UInt64) {
    switch unfinished {
    case .port(let offset, _):
      // `offset` is that of the next element; the element that `next` returned lies before it.
      store(value, pendingWidth, at: offset - pendingWidth)
    case .memory(let next, _):
      store(value, pendingWidth, at: NESTLING_KVM_RUN_MMIO_DATA + next - pendingWidth)
    case .none: break
    }
  }

  /// Whether `next` will return another piece of the last exit instead of entering the guest.
  public var hasPiece: Bool {
    switch unfinished {
    case .none: false
    case .port(_, let remaining): remaining > 0
    case .memory(let next, let count): next < count
    }
  }

  private func nextPiece() -> VMExit? {
    switch unfinished {
    case .none: return nil
    case .port(let offset, let remaining):
      let width = Int(unsafe run.pointee.io.size)
      guard remaining > 0, width > 0, offset >= 0, offset + width <= shared.size else {
        unfinished = .none
        return nil
      }
      unfinished = .port(offset: offset + width, remaining: remaining - 1)
      let port = unsafe run.pointee.io.port
      if Int(unsafe run.pointee.io.direction) == KVM_EXIT_IO_OUT {
        return .portWrite(port: port, width: width, value: load(width, at: offset))
      }
      pendingWidth = width
      return .portRead(port: port, width: width)
    case .memory(let next, let count):
      guard next < count else {
        unfinished = .none
        return nil
      }
      // The largest power of two that fits: usually 8; a 3-byte remainder gives 2 and 1.
      var width = 8
      while width > count - next { width /= 2 }
      unfinished = .memory(next: next + width, count: count)
      let address = unsafe run.pointee.mmio.phys_addr &+ UInt64(next)
      if unsafe run.pointee.mmio.is_write != 0 {
        return .memoryWrite(address: address, width: width, value: load(width, at: NESTLING_KVM_RUN_MMIO_DATA + next))
      }
      pendingWidth = width
      return .memoryRead(address: address, width: width)
    }
  }

  /// - Parameter offset: within the shared page; `offset + width` must be, too.
  private func load(_ width: Int, at offset: Int) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<width {
      value |= UInt64(unsafe shared.base.load(fromByteOffset: offset + index, as: UInt8.self)) << (8 * index)
    }
    return value
  }

  private func store(_ value: UInt64, _ width: Int, at offset: Int) {
    for index in 0..<width {
      unsafe shared.base.storeBytes(
        of: UInt8(truncatingIfNeeded: value >> (8 * index)), toByteOffset: offset + index, as: UInt8.self)
    }
  }
}
