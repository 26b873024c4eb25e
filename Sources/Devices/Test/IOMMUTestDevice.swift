import Hardware
import PCI
import Synchronization

/// QEMU 11's `iommu-testdev` (docs/specs/iommu-testdev.rst). On a read of one register, it writes a known pattern to a
/// DMA address, and compares the content of a physical address with the pattern. The register names are that
/// document's.
///
/// As in QEMU, the device is a conventional function without interrupts, and the transfer takes place within the read,
/// as drivers expect. Only the vCPU that reads waits for the transfer, and no lock is held meanwhile. Unlike in QEMU, a
/// length above `IOMMUTestRegisters.longest` is a bad length, a refused write ends the transfer, and the device does
/// not allocate memory for the whole length.
///
/// The attributes describe Arm's security states, which VT-d does not have. The device only validates them, as in QEMU.
public final class IOMMUTestDevice: FunctionModel {
  public let function: Function
  private let port: any DMAPort
  private let memory: any PhysicalMemory
  private let registers = Mutex(IOMMUTestRegisters())

  /// - Parameter address: device and function on the bus to which the caller adds `function`.
  public init(environment: PCIEnvironment, address: RequesterID) {
    var description = FunctionDescription(vendorID: 0x1b36, deviceID: 0x0005, classCode: 0x00ff00)
    description.subsystemVendorID = 0x1af4
    description.subsystemID = 0x1100
    description.baseAddressRegisters = [.init(index: 0, space: .memory32, size: 0x1000)]
    function = Function(description, at: address, environment: environment)
    port = function.environment.makePort()
    memory = environment.memory
    function.install(self)
  }

  // MARK: FunctionModel

  public func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 {
    guard offset % 4 == 0 else { return 0 }
    switch width {
    case .byte, .word: return 0
    case .doubleword: return UInt64(read(offset))
    // Two accesses, as in QEMU's memory core.
    case .quadword:
      let low = UInt64(read(offset))
      return low | UInt64(read(offset &+ 4)) << 32
    }
  }

  public func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    guard offset % 4 == 0, width == .doubleword || width == .quadword else { return }
    registers.withLock { registers in
      registers.write(offset, UInt32(truncatingIfNeeded: value))
      if width == .quadword { registers.write(offset &+ 4, UInt32(truncatingIfNeeded: value >> 32)) }
    }
  }

  public func reset() {
    registers.withLock { $0 = IOMMUTestRegisters() }
  }

  private func read(_ offset: UInt64) -> UInt32 {
    guard offset == IOMMUTestRegisters.Offset.triggering else { return registers.withLock { $0.read(offset) } }
    if let transfer = registers.withLock({ $0.take() }) {
      let result = run(transfer)
      registers.withLock { $0.result = result }
    }
    return 0
  }

  // MARK: The transfer

  /// The transfer writes and compares parts of this many bytes.
  private static let partSize = 4096

  private func run(_ transfer: IOMMUTestRegisters.Transfer) -> UInt32 {
    var pattern = [UInt8](repeating: 0, count: Self.partSize)
    for index in pattern.indices {
      pattern[index] = UInt8(truncatingIfNeeded: IOMMUTestRegisters.pattern >> UInt32(8 * (index % 4)))
    }
    let count = UInt64(transfer.count)
    if (try? checkTransfer(at: transfer.virtualAddress, count: count)) == nil {
      return IOMMUTestRegisters.Result.writeFailed
    }
    if (try? checkTransfer(at: transfer.physicalAddress, count: count)) == nil {
      return IOMMUTestRegisters.Result.readFailed
    }
    var done = 0
    while done < transfer.count {
      let count = min(Self.partSize, transfer.count - done)
      do {
        try port.write(pattern, 0..<count, to: transfer.virtualAddress &+ UInt64(done))
      } catch {
        return IOMMUTestRegisters.Result.writeFailed
      }
      done += count
    }
    var part = pattern
    var matches = true
    done = 0
    while done < transfer.count {
      let count = min(Self.partSize, transfer.count - done)
      // This access bypasses the IOMMU.
      guard memory.read(from: transfer.physicalAddress &+ UInt64(done), into: &part, 0..<count) else {
        return IOMMUTestRegisters.Result.readFailed
      }
      if part[0..<count] != pattern[0..<count] { matches = false }
      done += count
    }
    return matches ? IOMMUTestRegisters.Result.success : IOMMUTestRegisters.Result.mismatch
  }
}
