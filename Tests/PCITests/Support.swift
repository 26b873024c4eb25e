import Hardware
import PCI
import Synchronization
import TestSupport

/// Real buses, and test objects in place of the rest of a function's board.
final class TestBoard {
  let memory = HeapMemory(size: 0x10000)
  let memoryBus = AddressBus()
  let ioBus = AddressBus()
  let router = RecordingRouter()
  let line = RecordingLine()
  let environment: PCIEnvironment

  init() {
    environment = PCIEnvironment(
      memoryBus: memoryBus, ioBus: ioBus, memory: memory, remapper: DirectRemapper(memory: memory),
      interrupts: router, workers: InlineWorkerSource(), makeParking: { SemaphoreParking() })
  }

  func make(_ description: FunctionDescription, at address: UInt16 = 0x10) -> (Function, RecordingModel) {
    let function = Function(description, at: RequesterID(rawValue: address), environment: environment)
    let model = RecordingModel()
    function.install(model)
    function.connect(interruptLine: line)
    return (function, model)
  }
}

/// A device model that records the calls it receives, except reads. A read returns the BAR's number in bits 63:32 and
/// the offset below.
final class RecordingModel: FunctionModel {
  enum Event: Hashable, Sendable {
    case write(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64)
    case reset
    case placed(bar: Int, base: UInt64?)
    /// Comes after `placed` if another region covers a part of the BAR.
    case visible(bar: Int, parts: [Range<UInt64>])
    case configurationWritten(offset: Int, width: AccessWidth, value: UInt64)
  }

  private let log = Mutex<[Event]>([])

  /// Returns the events since the last call.
  func take() -> [Event] {
    log.withLock { log in
      defer { log = [] }
      return log
    }
  }

  func readRegion(bar: Int, offset: UInt64, width: AccessWidth) -> UInt64 { UInt64(bar) << 32 | offset }
  func writeRegion(bar: Int, offset: UInt64, width: AccessWidth, value: UInt64) {
    add(.write(bar: bar, offset: offset, width: width, value: value))
  }
  func reset() { add(.reset) }
  func placed(bar: Int, at base: UInt64?, visible parts: [Range<UInt64>]) {
    add(.placed(bar: bar, base: base))
    if base != nil, parts.count != 1 || parts[0].lowerBound != 0 || parts[0].upperBound.nonzeroBitCount != 1 {
      add(.visible(bar: bar, parts: parts))
    }
  }
  func configurationWritten(offset: Int, width: AccessWidth, value: UInt64) {
    add(.configurationWritten(offset: offset, width: width, value: value))
  }

  private func add(_ event: Event) { log.withLock { $0.append(event) } }
}

extension FunctionDescription {
  static var plain: FunctionDescription { FunctionDescription(vendorID: 0x1af4, deviceID: 0x1042, classCode: 0x018000) }

  /// A function with each type of BAR and each capability.
  static var everything: FunctionDescription {
    var description = FunctionDescription.plain
    description.revisionID = 1
    description.subsystemVendorID = 0x1af4
    description.subsystemID = 0x1100
    description.interruptPin = 1
    description.baseAddressRegisters = [
      BaseAddressRegister(index: 0, space: .memory32, size: 0x1000),
      BaseAddressRegister(index: 1, space: .io, size: 0x20),
      BaseAddressRegister(index: 2, space: .memory64, size: 16 << 20, prefetchable: true),
      BaseAddressRegister(index: 4, space: .memory32, size: 0x10000, prefetchable: true),
    ]
    description.msix = MSIX.Layout(vectorCount: 3, bar: 0, tableOffset: 0, pendingOffset: 0x800)
    description.msiVectorCount = 4
    description.expressType = .rootComplexIntegratedEndpoint
    description.capabilities = [.init(id: 0x09, body: [0x05, 0xaa, 0xbb], writable: [0x00, 0xff])]
    return description
  }
}

/// The offsets of the capabilities of `everything`.
enum EverythingOffset {
  static let msix = 0x40
  static let msi = 0x4c
  static let express = 0x64
  static let vendor = 0xa0
}

extension Function {
  func read8(_ offset: Int) -> UInt8 { UInt8(readConfiguration(offset: offset, width: .byte)) }
  func read16(_ offset: Int) -> UInt16 { UInt16(readConfiguration(offset: offset, width: .word)) }
  func read32(_ offset: Int) -> UInt32 { UInt32(readConfiguration(offset: offset, width: .doubleword)) }
  func write8(_ offset: Int, _ value: UInt8) { writeConfiguration(offset: offset, width: .byte, value: UInt64(value)) }
  func write16(_ offset: Int, _ value: UInt16) {
    writeConfiguration(offset: offset, width: .word, value: UInt64(value))
  }
  func write32(_ offset: Int, _ value: UInt32) {
    writeConfiguration(offset: offset, width: .doubleword, value: UInt64(value))
  }

  func command(_ command: Command) { write16(StandardOffset.command, command.rawValue) }
}

extension Array where Element == UInt8 {
  /// Creates 256 bytes from hexadecimal text; the key is the offset of the row's first byte. All other bytes are zero.
  init(rows: [Int: String]) {
    self.init(repeating: 0, count: 256)
    for (offset, text) in rows {
      for (index, byte) in text.split(separator: " ").enumerated() {
        self[offset + index] = UInt8(byte, radix: 16) ?? 0
      }
    }
  }

  /// A hex dump, 16 bytes per row, so that a failed comparison is readable.
  var dump: [String] {
    stride(from: 0, to: count, by: 16).map { row in
      let bytes = self[row..<Swift.min(row + 16, count)].map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }
      return (row < 16 ? "0" : "") + String(row, radix: 16) + ": " + bytes.joined(separator: " ")
    }
  }
}
