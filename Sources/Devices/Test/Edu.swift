import Hardware
import PCI
import Synchronization

/// QEMU's educational device, `edu` (docs/specs/edu.rst): a factorial, an interrupt and a DMA engine with a buffer of
/// 4 KiB, behind one BAR. The names of registers and bits are those of that document.
///
/// As in QEMU, the device is a conventional function without a PCI Express capability, and so without Function Level
/// Reset. The differences from QEMU:
/// - A transfer that is not within the buffer completes without moving data. QEMU before 10 aborts; later versions
///   access memory past the buffer.
/// - A transfer that would wrap past the top of the address space completes without moving data, too; a read fills its
///   part of the buffer with zeros.
/// - A transfer starts at once, not 100 ms after the command.
/// - A reset of the board clears the registers.
/// - MSI has per-vector masking, like all MSI capabilities of `PCI`.
///
/// Lock order: `buffer`, which a transfer holds from its start to its end, then `registers`, then the function's.
public final class Edu: FunctionModel {
  public let function: Function
  private let mask: UInt64
  private let port: any DMAPort
  private let registers = Mutex(EduRegisters())
  private let buffer = Mutex([UInt8](repeating: 0, count: EduRegisters.bufferSize))
  private let worker = Mutex<(any QueueWorker)?>(nil)

  /// - Parameters:
  ///   - mask: ANDed with each DMA address (`dma_mask`).
  ///   - address: device and function on the bus to which the caller adds `function`.
  public init(mask: UInt64, environment: PCIEnvironment, address: RequesterID) {
    self.mask = mask
    var description = FunctionDescription(vendorID: 0x1234, deviceID: 0x11e8, classCode: 0x00ff00)
    description.revisionID = 0x10
    description.subsystemVendorID = 0x1af4
    description.subsystemID = 0x1100
    description.interruptPin = 1
    description.baseAddressRegisters = [.init(index: 0, space: .memory32, size: 1 << 20)]
    description.msiVectorCount = 1
    function = Function(description, at: address, environment: environment)
    port = function.environment.makePort()
    let made = function.environment.makeWorker(name: "edu") { [weak self] in self?.work() }
    worker.withLock { $0 = made }
    function.install(self)
  }

  // MARK: FunctionModel

  public func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    switch EduRegisters.Access(offset: offset, width: width) {
    case .refused: 0
    case .unanswered: width.allOnes
    case .single: registers.withLock { $0.read(offset) } & width.allOnes
    case .halves:
      registers.withLock { $0.read(offset) } & 0xffff_ffff | registers.withLock { $0.read(offset &+ 4) } << 32
    }
  }

  public func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    switch EduRegisters.Access(offset: offset, width: width) {
    case .refused, .unanswered: break
    case .single: write(offset, value & width.allOnes)
    case .halves:
      write(offset, value & 0xffff_ffff)
      write(offset &+ 4, value >> 32)
    }
  }

  public func reset() {
    buffer.withLock { buffer in
      for index in buffer.indices { buffer[index] = 0 }
      registers.withLock { $0 = EduRegisters() }
    }
  }

  private func write(_ offset: UInt64, _ value: UInt64) {
    let hasWork = registers.withLock { registers in
      drive(registers.write(offset, value))
      return registers.hasWork
    }
    // Wake the worker without the lock, because it may run at once.
    if hasWork { worker.withLock { $0 }?.wake() }
  }

  /// Changes the interrupt. Called with the registers' lock held, so that the wire matches the registers.
  private func drive(_ interrupt: EduRegisters.Interrupt) {
    switch interrupt {
    case .none: break
    case .raise:
      if let msi = function.msi, msi.isEnabled { msi.signal(0) } else { function.setINTx(true) }
    case .lower: function.setINTx(false)
    }
  }

  // MARK: The worker

  private func work() {
    registers.withLock { drive($0.finishFactorial()) }
    buffer.withLock { buffer in
      guard let transfer = registers.withLock({ $0.transfer }) else { return }
      if let range = transfer.range { move(range, of: &buffer, transfer) }
      registers.withLock { drive($0.finishTransfer()) }
    }
  }

  /// Moves data with a separate request for each page, as on a bus. Pages that cannot be read yield zeros, as in QEMU.
  private func move(_ range: Range<Int>, of buffer: inout [UInt8], _ transfer: EduRegisters.Transfer) {
    let address = transfer.address & mask
    guard (try? checkTransfer(at: address, count: UInt64(range.count))) != nil else {
      if !transfer.toMemory { for index in range { buffer[index] = 0 } }
      return
    }
    var start = range.lowerBound
    while start < range.upperBound {
      let at = address &+ UInt64(start - range.lowerBound)
      let end = min(range.upperBound, start + Int(0x1000 - at & 0xfff))
      do {
        if transfer.toMemory {
          try port.writeRequest(buffer, start..<end, to: at)
        } else {
          try port.read(from: at, into: &buffer, start..<end)
        }
      } catch {
        if !transfer.toMemory { for index in start..<end { buffer[index] = 0 } }
      }
      start = end
    }
  }
}
