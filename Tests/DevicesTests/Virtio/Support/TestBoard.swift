import Devices
import Hardware
import PCI
import Synchronization
import TestSupport

/// RAM, buses and test objects for one function: a board as a driver sees it.
final class TestBoard {
  static let structuresBase: UInt64 = 0x8_0000_0000
  static let tableBase: UInt64 = 0xc000_0000

  let memory: HeapMemory
  let memoryBus = AddressBus()
  let router = RecordingRouter()
  let workers = InlineWorkerSource()
  let line = RecordingLine()
  let environment: PCIEnvironment

  init(
    memorySize: Int = 4 << 20, remapper: PageRemapper? = nil, workers other: (any QueueWorkerSource)? = nil
  ) {
    memory = remapper?.memory ?? HeapMemory(size: memorySize)
    environment = PCIEnvironment(
      memoryBus: memoryBus, ioBus: AddressBus(), memory: memory,
      remapper: remapper ?? PageRemapper(memory: memory), interrupts: router, workers: other ?? workers,
      makeParking: { SemaphoreParking() })
  }

  /// Places the BARs and enables decoding, as firmware does. Bus mastering is left to the driver.
  func plug(_ device: VirtioPCI) {
    device.function.connect(interruptLine: line)
    for bar in device.function.description.baseAddressRegisters {
      device.function.place(bar, at: bar.index == 4 ? Self.structuresBase : Self.tableBase)
    }
    device.function.writeConfiguration(offset: StandardOffset.command, width: .word, value: 0x2)
  }
}

/// An IOMMU with pages of 4 KiB that refuses unmapped addresses.
final class PageRemapper: DMARemapper {
  let memory: HeapMemory
  private let pages = Mutex<[UInt64: UInt64]>([:])
  private let refusals = Mutex<[UInt64]>([])
  private let made = Mutex<[any DMAPort]>([])
  private let watched = Mutex<(address: UInt64, body: @Sendable () -> Void)?>(nil)

  init(memory: HeapMemory) { self.memory = memory }

  /// The refused addresses, in order.
  var refused: [UInt64] { refusals.withLock { $0 } }
  /// The ports in the order in which they were made.
  var ports: [any DMAPort] { made.withLock { $0 } }

  func map(_ address: UInt64, to physical: UInt64, count: UInt64) {
    pages.withLock { pages in
      for offset in stride(from: 0, to: count, by: 4096) {
        pages[(address + offset) >> 12] = (physical + offset) >> 12
      }
    }
  }

  /// Calls `body` once, at the next translation of an address.
  func atNextUse(of address: UInt64, _ body: @escaping @Sendable () -> Void) {
    watched.withLock { $0 = (address, body) }
  }

  private func report(_ address: UInt64) {
    watched.withLock { watched -> (@Sendable () -> Void)? in
      guard let found = watched, found.address == address else { return nil }
      watched = nil
      return found.body
    }?()
  }

  func unmap(_ address: UInt64) { pages.withLock { $0[address >> 12] = nil } }

  func makePort(for requester: Requester) -> any DMAPort {
    let port = Port(remapper: self, requester: requester)
    made.withLock { $0.append(port) }
    return port
  }

  private final class Port: DMAPort {
    let remapper: PageRemapper
    let requester: Requester
    let inFlight = RequestsInFlight()
    var memory: any PhysicalMemory { remapper.memory }

    init(remapper: PageRemapper, requester: Requester) {
      self.remapper = remapper
      self.requester = requester
    }

    func translate(_ address: UInt64, count: Int, for access: DMAAccess) throws(DMAError) -> PhysicalSegment {
      remapper.report(address)
      guard requester.busMasterEnable else { throw .disabled }
      guard let page = remapper.pages.withLock({ $0[address >> 12] }) else {
        remapper.refusals.withLock { $0.append(address) }
        throw .translation
      }
      let within = address & 0xfff
      return PhysicalSegment(address: page << 12 | within, count: min(count, Int(4096 - within)))
    }

    func noteUnclaimed() { requester.receiveMasterAbort() }
  }
}
