import FakeVFIO
import Hardware
import PCI
import TestSupport
import Testing
import VFIO
import VTdOracle

@testable import Passthrough
@testable import VTd

/// A guest's unit that offers page requests, with devices of the host on a first stage behind it. It connects the
/// kernel's fault queue with the guest's page request queue.
final class PageRequestChain {
  /// The host's function, with ATS at 0x140 and PRI at 0x1a0.
  static var image: [UInt8] {
    var image = FakeKernel.endpointImage
    image.store(UInt32(0x4), at: 0x18)
    image.store(UInt32(0x1801_000f), at: 0x140)
    image.store(UInt32(0x8000_0025), at: 0x144)
    image.store(UInt32(0x1a01_0003), at: 0x180)
    image.store(UInt32(0x0001_0013), at: 0x1a0)
    image.store(UInt32(0x8000_0001), at: 0x1a4)
    image.store(UInt32(48), at: 0x1a8)
    image.store(UInt32(32), at: 0x1ac)
    return image
  }

  /// Linux 6.12 with two devices, or a later one that attaches PASIDs of this width.
  static func makeKernel(pasidWidth: UInt8 = 0) -> FakeKernel {
    let kernel = FakeKernel(
      devices: (0..<2).map { number in
        var device = FakeKernel.Device(path: "/dev/vfio/devices/vfio\(number)")
        device.regions[7] = (4096, 0b011, [])
        device.regions[2] = (0x4000, 0b011, [])
        device.contents[7] = image
        device.pasidWidth = pasidWidth
        return device
      })
    kernel.state.withLock { $0.attachesPASIDs = pasidWidth > 0 }
    return kernel
  }

  private let nesting: NestingGuest
  private let kernel: FakeKernel
  private let queue: UInt64
  private let memory: PassthroughMemory
  /// The notices to the user.
  let notices = Notes<HostBoundDevice.Notice>()
  private(set) var bounds: [HostBoundDevice] = []
  private(set) var models: [VFIOPCI] = []

  var guest: Guest { nesting.guest }
  var tables: Guest.ScalableTables { nesting.tables }
  var bindings: HostBindings { nesting.bindings }

  private let pasidWidth: Int

  init(_ kernel: FakeKernel, devices: Int = 1, pasidWidth: Int = 0) throws {
    self.kernel = kernel
    self.pasidWidth = pasidWidth
    // PRE, PASIDE, DTE.
    nesting = try NestingGuest(context: 1 << 4 | 1 << 3 | 1 << 2) {
      $0.nested = true  // for RID_PASID
      $0.deviceIOTLB = true
      $0.pasidBits = 20
      $0.svm = true
    }
    queue = nesting.guest.page()
    memory = try kernel.makeMemory()
    nesting.guest.write64(0xd0, queue)
    for number in 0..<devices { try add(number) }
    nesting.enableTranslation()
  }

  /// Runs the body with a chain, ends the chain and checks that the kernel holds nothing of it.
  /// - Returns: The kernel.
  @discardableResult
  static func run(devices: Int = 1, _ body: (PageRequestChain, FakeKernel) throws -> Void) throws -> FakeKernel {
    let kernel = makeKernel()
    do {
      let chain = try PageRequestChain(kernel, devices: devices)
      defer { chain.end() }
      try body(chain, kernel)
    }
    #expect(kernel.complaints == [])
    return kernel
  }

  func end() {
    for (bound, model) in zip(bounds, models) {
      bindings.remove(bound)
      model.function.revoke()
    }
  }

  private func add(_ number: Int) throws {
    let device = try kernel.openDevice(number, for: memory)
    let bound = try HostBoundDevice(device, memory: memory, nests: true, pasidWidth: pasidWidth) { [notices] in
      notices.add($0)
    }
    let offered = try bound.offerPageRequests()
    let requests = try #require(offered)
    let model = try VFIOPCI(
      device,
      environment: PCIEnvironment(
        memoryBus: AddressBus(), ioBus: AddressBus(), memory: guest.memory, remapper: guest.unit,
        interrupts: EventRouter(), workers: InlineWorkerSource(), makeParking: { SemaphoreParking() }),
      address: NestingGuest.sources[number], services: [.addressTranslation, .pageRequests])
    model.function.writeConfiguration(offset: 4, width: .word, value: 4)
    model.function.writeConfiguration(offset: 0x1a4, width: .word, value: 1)
    model.servePageRequests(requests, of: device.id, bound, bindings)
    bindings.add(bound, for: model.function.requester)
    bounds.append(bound)
    models.append(model)
  }

  // MARK: The guest's side

  /// The number of page requests in the guest's queue.
  var count: UInt64 { (guest.read64(0xc8) &- guest.read64(0xc0)) % 4096 / 32 }

  /// Sends a group of one request and waits until it reaches the guest.
  func request(_ device: Int = 0, group: UInt32, sourceLocation: SourceLocation = #_sourceLocation) {
    let before = count
    kernel.requestPages(of: device, group: group, [0x5000])
    #expect(eventually { count == before + 1 }, sourceLocation: sourceLocation)
  }

  /// Takes the page requests from the guest's queue and returns the two words of each.
  func take() -> [[UInt64]] {
    var found: [[UInt64]] = []
    var head = guest.read64(0xc0)
    while head != guest.read64(0xc8) {
      found.append([guest.load(queue + head), guest.load(queue + head + 8)])
      head = (head + 32) & 0xfff
    }
    guest.write64(0xc0, head)
    guest.write32(0xdc, 1)
    return found
  }

  /// Submits the guest's response.
  /// - Returns: Whether the unit processed it.
  func respond(_ device: Int = 0, group: UInt64, code: UInt64 = 0, pasid: UInt64 = 0) -> Bool {
    guest.submitAndWait([
      0x9 | 1 << 4 | code << 12 | UInt64(NestingGuest.sources[device].rawValue) << 16 | pasid << 32, group << 3,
    ])
  }

  /// Submits the guest's response to a group without PASID.
  func respond(withoutPASID group: UInt64) -> Bool {
    guest.submitAndWait([0x9 | UInt64(NestingGuest.sources[0].rawValue) << 16, group << 3])
  }

  /// Clears the errors of PRI's status.
  func clearStatus() { models[0].function.writeConfiguration(offset: 0x1a6, width: .word, value: 3) }

  /// Returns the status of a function's PRI.
  func status(_ device: Int = 0) -> UInt64 { models[device].function.readConfiguration(offset: 0x1a6, width: .word) }

  // MARK: Tables

  func invalidateEntry() -> Bool { nesting.invalidateEntry() }
  func setTable(_ root: UInt64) -> Bool { nesting.setTable(root) }

  /// Writes the entry of a PASID below 64 and invalidates it; a root of 0 makes it not present.
  func set(_ pasid: UInt32, _ root: UInt64, sourceLocation: SourceLocation = #_sourceLocation) {
    let entry = tables.entry + UInt64(pasid) * 64
    let words = root == 0 ? (0, 0, 0) : Guest.pasidEntry(type: 1, firstStage: root)
    guest.store(words.1, at: entry + 8)
    guest.store(words.2, at: entry + 16)
    guest.store(words.0, at: entry)
    #expect(
      guest.submitAndWait([7 | 1 << 4 | 5 << 16 | UInt64(pasid) << 32, 0]), sourceLocation: sourceLocation)
  }
}
