import Devices
import Hardware
import PCI
import TestSupport

/// A network device on a bus, whose accesses to memory and whose packets are checked, and the accesses of its driver.
final class NetworkUnderTest {
  private static let structures: UInt64 = 0xc400_0000
  /// The page of each queue's descriptor table; the available and the used ring follow on their own pages.
  static func rings(_ queue: Int) -> UInt64 { 0x1_0000 + UInt64(queue) * 0x3000 }

  let memory = HeapMemory(size: FuzzMemory.size)
  let watch: WatchedMemory
  let network: FuzzNetwork
  let net: VirtioNet
  let function: Function
  private let memoryBus = AddressBus()
  private let workers: WatchedWorkers
  var queueCount: Int { net.queueSizes.count }

  /// Runs a queue's worker under the memory's checks.
  private final class WatchedWorkers: QueueWorkerSource {
    let workers = FuzzWorkers()
    let watch: WatchedMemory

    init(_ watch: WatchedMemory) { self.watch = watch }

    func makeWorker(name: String, handler: @escaping @Sendable () -> Void) -> any QueueWorker {
      // The transport names each worker by its device and the number of its queue.
      let queue = name.split(separator: " ").last.flatMap { Int($0) } ?? 0
      return workers.makeWorker(name: name) { [watch] in watch.serve(queue, handler) }
    }
  }

  init(_ input: inout FuzzInput) throws(Finding) {
    let watch = WatchedMemory(memory)
    self.watch = watch
    workers = WatchedWorkers(watch)
    let all = NetworkOffloads(rawValue: 0x7f)
    var capabilities = NetworkCapabilities(sends: all, receives: all, pairs: 1 + input.choice(3))
    var parameters = VirtioNetParameters()
    let form = input.byte()
    // VIRTIO_NET_F_MQ
    parameters[VirtioFeatures(bit: 22)] = form & 1 != 0
    if form & 2 != 0 { parameters.mtu = 68 + UInt16(input.word() % 9000) }
    if form & 4 != 0 { capabilities.sends = NetworkOffloads(rawValue: input.byte() & 0x7f) }
    if form & 8 != 0 { capabilities.receives = NetworkOffloads(rawValue: input.byte() & 0x7f) }
    if form & 16 != 0 { parameters.features.subtract(VirtioFeatures(rawValue: input.little(4))) }
    parameters.transport.eventIndex = form & 32 == 0
    network = FuzzNetwork(capabilities, memory: memory, watch: watch)
    do { net = try VirtioNet(parameters: parameters, backend: network) } catch {
      throw Finding(text: "options in range are refused: \(error)")
    }
    let device = VirtioPCI(
      device: net, options: parameters.transport,
      environment: PCIEnvironment(
        memoryBus: memoryBus, ioBus: AddressBus(), memory: watch, remapper: DirectRemapper(memory: watch),
        interrupts: RecordingRouter(), workers: workers, makeParking: { FuzzParking() }),
      address: RequesterID(bus: 0, device: 3, function: 0))
    function = device.function
    function.connect(interruptLine: RecordingLine())
    for bar in function.description.baseAddressRegisters {
      function.place(bar, at: bar.index == 4 ? Self.structures : Self.structures + 0x10_0000)
    }
    setCommand(6)
  }

  // MARK: Accesses

  func setCommand(_ value: UInt64) {
    function.writeConfiguration(offset: StandardOffset.command, width: .word, value: value)
  }

  func write(_ offset: UInt64, _ width: AccessWidth, _ value: UInt64) {
    memoryBus.write(address: Self.structures + offset, width: width, value: value & width.allOnes)
  }

  func read(_ offset: UInt64, _ width: AccessWidth) -> UInt64 {
    memoryBus.read(address: Self.structures + offset, width: width) ?? width.allOnes
  }

  func notify(_ queue: Int) { write(0x3000 + 4 * UInt64(queue), .word, UInt64(queue)) }

  /// Runs each woken worker, and then those that these have woken.
  func run() {
    for _ in 0..<2 { workers.workers.run() }
  }

  /// Clears Bus Master Enable before an access of the device.
  func stopBusMaster(after accesses: Int) {
    let requester = function.requester
    watch.after(accesses) { requester.busMasterEnable = false }
  }

  // MARK: Initialization

  /// The features that the device offers.
  var offered: UInt64 {
    write(0x00, .doubleword, 0)
    let low = read(0x04, .doubleword)
    write(0x00, .doubleword, 1)
    return read(0x04, .doubleword) << 32 | low
  }

  /// Resets the device and negotiates features.
  /// - Returns: whether the device accepts them.
  @discardableResult
  func negotiate(_ features: UInt64) -> Bool {
    write(0x14, .byte, 0)
    write(0x14, .byte, 3)
    for half: UInt64 in 0..<2 {
      write(0x08, .doubleword, half)
      write(0x0c, .doubleword, features >> (32 * half))
    }
    write(0x14, .byte, 0xb)
    let isAccepted = read(0x14, .byte) & 8 != 0
    network.setFeatures(isAccepted ? VirtioFeatures(rawValue: features) : [])
    followRings()
    return isAccepted
  }

  /// Enables a queue.
  func enable(_ queue: Int, size: UInt64, table: UInt64, available: UInt64, used: UInt64) {
    write(0x16, .word, UInt64(queue))
    write(0x18, .word, size)
    for (offset, address) in [(0x20, table), (0x28, available), (0x30, used)] as [(UInt64, UInt64)] {
      write(offset, .quadword, address)
    }
    write(0x1c, .word, 1)
    followRings()
  }

  func start() { write(0x14, .byte, 0xf) }

  /// Reads the rings of all queues back, after a change.
  func followRings() {
    let selected = read(0x16, .word)
    for queue in 0..<queueCount {
      write(0x16, .word, UInt64(queue))
      guard read(0x1c, .word) == 1 else {
        watch.setRings(nil, of: queue)
        continue
      }
      func address(_ offset: UInt64) -> UInt64 { read(offset + 4, .doubleword) << 32 | read(offset, .doubleword) }
      watch.setRings(
        .init(size: read(0x18, .word), table: address(0x20), available: address(0x28), used: address(0x30)), of: queue)
    }
    write(0x16, .word, selected)
  }

  // MARK: Checks

  func check() throws(Finding) {
    if let finding = watch.finding ?? network.finding { throw finding }
    try Finding.unless((1...net.pairCount).contains(net.activePairs), "\(net.activePairs) active pairs")
  }

  /// Unplugs the device, and checks that pending work does no harm.
  func unplug() throws(Finding) {
    function.refuse()
    network.wakeDevice()
    run()
    function.revoke()
    run()
    try check()
  }
}

/// The driver's side of a queue.
struct FuzzRing {
  struct Buffer {
    var address: UInt64
    var count: UInt64
    var isWritable = false
  }

  let memory: HeapMemory
  let rings: WatchedMemory.Rings

  /// Makes a chain available. Its descriptors begin with number `first`.
  /// - Parameter table: the address of an indirect table for the chain; nil for direct descriptors.
  func offer(_ buffers: [Buffer], first: UInt64, table: UInt64? = nil) {
    guard rings.size > 0, !buffers.isEmpty else { return }
    for (index, buffer) in buffers.enumerated() {
      let isLast = index + 1 == buffers.count
      let next = table == nil ? (first + UInt64(index) + 1) % rings.size : UInt64(index) + 1
      let at = table.map { $0 &+ 16 * UInt64(index) } ?? rings.table &+ 16 * ((first + UInt64(index)) % rings.size)
      memory.storeUInt64(buffer.address, at: at)
      let flags: UInt64 = (isLast ? 0 : 1) | (buffer.isWritable ? 2 : 0)
      memory.storeUInt64(buffer.count & 0xffff_ffff | flags << 32 | (isLast ? 0 : next << 48), at: at &+ 8)
    }
    if let table {
      memory.storeUInt64(table, at: rings.table &+ 16 * (first % rings.size))
      memory.storeUInt64(16 * UInt64(buffers.count) | 4 << 32, at: rings.table &+ 16 * (first % rings.size) &+ 8)
    }
    let index = memory.loadUInt16(at: rings.available &+ 2) ?? 0
    memory.storeUInt16(
      UInt16(truncatingIfNeeded: first % rings.size), at: rings.available &+ 4 &+ 2 * (UInt64(index) % rings.size))
    memory.storeUInt16(index &+ 1, at: rings.available &+ 2)
  }

  /// The entries of the used ring, from its first on.
  var used: [(head: UInt32, length: Int)] {
    (0..<UInt64(memory.loadUInt16(at: rings.used &+ 2) ?? 0)).map { index in
      let at = rings.used &+ 4 &+ 8 * (index % rings.size)
      return (memory.loadUInt32(at: at) ?? 0, Int(memory.loadUInt32(at: at &+ 4) ?? 0))
    }
  }
}
