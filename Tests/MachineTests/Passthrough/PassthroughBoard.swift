import FakeVFIO
import Hardware
import Linux
import Passthrough
import TestSupport
import Testing
import VFIO
import VTd
import VTdOracle

@testable import Machine

/// A whole board without CPUs, with devices that the fake kernel passes through and a driver of its unit.
final class PassthroughBoard {
  static let memorySize: UInt64 = 16 << 20
  static let options: IntelIOMMUOptions = {
    var unit = IntelIOMMUOptions()
    unit.unit.scalableMode = true
    unit.unit.firstStage = true
    // The fake host has no 1 GiB pages.
    unit.unit.fs1gp = false
    return unit
  }()

  let kernel: FakeKernel
  let sysfs: FakeSysfs
  let board: Board
  let configuration: MachineConfiguration
  let accelerator: EventAccelerator
  let addresses: [RequesterID?]
  let notices = Notes<PassthroughNotice>()

  /// Returns the options of an iommufd object.
  static func object(_ id: String) -> IOMMUFDOptions {
    var object = IOMMUFDOptions()
    object.id = try? Identifier(text: id)
    return object
  }

  static func device(_ number: Int, _ object: String, _ change: (inout VFIOPCIOptions) -> Void = { _ in })
    -> VFIOPCIOptions
  {
    var options = VFIOPCIOptions()
    options.id = try? Identifier(text: "host\(number)")
    options.host = "0000:0\(number + 1):00.0"
    options.iommufd = try? Identifier(text: object)
    change(&options)
    return options
  }

  /// - Parameter devices: The devices in the order of construction. A failure removes all of them.
  init(
    _ kernel: FakeKernel, _ devices: [any DeviceOptions], objects: [String] = ["i0"],
    lockedMemory: UInt64? = nil, sysfs: FakeSysfs? = nil
  ) throws {
    self.kernel = kernel
    self.sysfs = sysfs ?? Self.sysfs(of: kernel)
    var configuration = MachineConfiguration()
    configuration.devices = devices
    configuration.objects = objects.map { Self.object($0) }
    self.configuration = configuration
    accelerator = EventAccelerator(kernel: kernel)
    let placement = try configuration.devicePlacement()
    addresses = placement.map { $0?.address }
    board = try Board(
      memory: GuestMemory(size: Self.memorySize, lowLimit: BoardLayout.lowMemoryLimit(memorySize: Self.memorySize)),
      accelerator: accelerator,
      layout: try #require(BoardLayout(memorySize: Self.memorySize, physicalAddressWidth: 46)), processorCount: 1,
      units: configuration.unitPlacement(placement), serialOutput: nil, events: EventQueue(),
      devices: DeviceTree(try DeviceAdmission(configuration)),
      passthrough: PassthroughObjects(calls: kernel, sysfs: self.sysfs.root, lockedMemory: { lockedMemory }))
    board.passthrough.listen { [notices] in notices.add($0) }
    do {
      for device in devices { try board.add(device, with: configuration) }
      board.passthrough.resetBuses()
      try board.placeResources()
    } catch {
      board.removeDevices()
      throw error
    }
  }

  static func sysfs(of kernel: FakeKernel) -> FakeSysfs {
    let sysfs = FakeSysfs()
    for (number, device) in kernel.state.withLock({ $0.devices }).enumerated() {
      sysfs.add(
        "0000:0\(number + 1):00.0", driver: "vfio-pci", group: "\(device.group ?? number)",
        file: device.path.split(separator: "/").last.map(String.init))
    }
    return sysfs
  }

  func end() { board.removeDevices() }

  func identity(_ address: RequesterID) throws -> DeviceIdentity {
    try #require(board.devices.device(at: address)).identity
  }

  deinit { board.removeDevices() }

  // MARK: The driver's side

  func address(_ index: Int) -> RequesterID { addresses[index] ?? RequesterID(rawValue: 0) }

  private func place(_ function: RequesterID, _ offset: Int) -> UInt64 {
    BoardLayout.configurationAccess + UInt64(function.rawValue) << 12 + UInt64(offset)
  }

  func readConfiguration(_ function: RequesterID, _ offset: Int, _ width: Int = 4) -> UInt64 {
    board.readMemory(place(function, offset), width)
  }

  func writeConfiguration(_ function: RequesterID, _ offset: Int, _ value: UInt64, _ width: Int = 4) {
    board.writeMemory(place(function, offset), width, value)
  }

  /// A driver of the unit: its tables for some functions, which share one PASID table, and its queue.
  final class Driver {
    private let board: Board
    private let base: UInt64
    private let queue: UInt64
    private var tail: UInt64 = 0
    private var waits: UInt64 = 0
    private let status: UInt64
    private let contexts: [UInt64]
    let root: UInt64
    let entry: UInt64

    init(_ board: Board, _ functions: [RequesterID], base: UInt64 = BoardLayout.remappingUnit) {
      self.board = board
      self.base = base
      let pages = (0..<6).map { 0x10_0000 + 0x1000 * $0 as UInt64 }
      root = pages[0]
      contexts = functions.map { pages[1] + UInt64($0.deviceFunction & 0x7f) * 32 }
      let directory = pages[2]
      entry = pages[3]
      queue = pages[4]
      status = pages[5]
      store(pages[1] | 1, at: root)
      for context in contexts { store(directory | 1, at: context) }
      store(entry | 1, at: directory)
    }

    func store(_ value: UInt64, at address: UInt64) { _ = board.memory.storeUInt64(value, at: address) }

    private func command(_ bit: UInt64, set: Bool = true) {
      let on = board.readMemory(base + 0x1c, 4) & 0x8680_0000
      board.writeMemory(base + 0x18, 4, set ? on | 1 << bit : on & ~(1 << bit))
    }

    /// Sets the first stage of a PASID below 64. If `table` is 0, the entry becomes not present.
    func setFirstStage(_ table: UInt64, pasid: UInt64 = 0) {
      let words = Guest.pasidEntry(type: 1, firstStage: table)
      store(words.2, at: entry + pasid * 64 + 16)
      store(words.1, at: entry + pasid * 64 + 8)
      store(table == 0 ? 0 : words.0, at: entry + pasid * 64)
    }

    /// Sets PASIDE of each function's context entry.
    func allowPASIDs() {
      for context in contexts { store((board.memory.loadUInt64(at: context) ?? 0) | 1 << 3, at: context) }
    }

    func setPassThrough() {
      let words = Guest.pasidEntry(type: 4)
      store(words.2, at: entry + 16)
      store(words.1, at: entry + 8)
      store(words.0, at: entry)
    }

    func enable() {
      board.writeMemory(base + 0x20, 8, root | 0x400)
      command(30)
      board.writeMemory(base + 0x88, 8, 0)
      board.writeMemory(base + 0x90, 8, queue | 0x800)
      tail = 0
      command(26)
      command(31)
    }

    func disable() { command(31, set: false) }

    /// Submits descriptors and a wait behind them.
    /// - Returns: Whether the unit completed the wait.
    @discardableResult
    func submit(_ descriptors: [(UInt64, UInt64)]) -> Bool {
      waits += 1
      for (low, high) in descriptors + [(waits << 32 | 0x25, status)] {
        for (word, value) in [low, high, 0, 0].enumerated() { store(value, at: queue + tail + UInt64(word) * 8) }
        tail = (tail + 32) & 0xfff
      }
      board.writeMemory(base + 0x88, 8, tail)
      return board.memory.loadUInt32(at: status) == UInt32(waits)
    }

    /// Invalidates the PASID-cache entry of a PASID in domain 5.
    @discardableResult
    func invalidateEntry(pasid: UInt64 = 0) -> Bool { submit([(7 | 1 << 4 | 5 << 16 | pasid << 32, 0)]) }

    @discardableResult
    func invalidatePages(_ addresses: [UInt64], pasid: UInt64 = 0) -> Bool {
      submit(addresses.map { (6 | 3 << 4 | 5 << 16 | pasid << 32, $0) })
    }
  }

  func driver(of indices: [Int]) -> Driver { Driver(board, indices.map { address($0) }) }
}
