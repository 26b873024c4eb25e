#if TESTABLE
  import Glibc
  import Hardware
  import Linux
  import PCI
  import Synchronization
  import TestSupport

  @testable import Machine

  /// A board with root ports and the machine's hotplug, on one thread. The input decides when the machine's thread, and
  /// threads that may wait for the host, do their work. Guest accesses are made as a CPU makes them.
  final class MachineUnderTest {
    static let ports = ["rp0", "rp1", "rp2", "fixed"]

    let board: Board
    let hotplug: Hotplug
    let workers = FuzzWorkers()
    let work = FuzzHostWork()
    let clock: SteppedClock
    /// Whether the guest has switched the machine off, or the machine cannot continue.
    private(set) var hasEnded = false

    private let accelerator = QTestAccelerator()
    private let configuration: MachineConfiguration
    private let log = Log()
    private let hasStarted = SharedInteger()
    /// The board's regions without the devices that come and go.
    private let firstRegions: Set<ObjectIdentifier>
    private let firstDevices: [DeviceIdentity]
    private var present: Set<DeviceIdentity> = []
    private var gone: Set<DeviceIdentity> = []
    private var known: [WeakFunction] = []

    private struct WeakFunction {
      weak var function: Function?
      let device: DeviceIdentity
    }

    /// Counts of requests, answers and events as monitors see them.
    private final class Log: Sendable {
      struct Counts {
        var asked = 0
        var answered = 0
        var added = 0
        var deleted = 0
      }

      let counts = Mutex(Counts())
    }

    init(way: HotplugWay, unit: IntelIOMMUOptions?) throws {
      var configuration = MachineConfiguration()
      configuration.accelerator = .qtest
      configuration.memory.size = 16 << 20
      configuration.hotplugWay = way
      if let unit { configuration.devices.append(unit) }
      for (number, name) in Self.ports.enumerated() {
        var port = PCIERootPortOptions()
        port.id = try Identifier(text: name)
        port.slot = UInt16(number)
        port.function.address = RequesterID(bus: 0, device: UInt8(number + 1), function: 0)
        port.hotplug = name != "fixed"
        configuration.devices.append(port)
      }
      var edu = EduOptions()
      edu.id = try Identifier(text: "stays")
      edu.function.bus = "fixed"
      configuration.devices.append(edu)

      let placement = try configuration.devicePlacement()
      clock = accelerator.steppedClock
      guard let layout = BoardLayout(memorySize: configuration.memory.size, physicalAddressWidth: 40) else {
        throw Finding(text: "memory does not fit")
      }
      board = try Board(
        memory: try GuestMemory(
          size: configuration.memory.size,
          lowLimit: BoardLayout.lowMemoryLimit(memorySize: configuration.memory.size)),
        accelerator: accelerator, layout: layout, processorCount: 1, units: configuration.unitPlacement(placement),
        serialOutput: nil, events: try EventQueue(), devices: DeviceTree(try DeviceAdmission(configuration)),
        hotplug: way, hotplugPorts: configuration.hotplugSlots(placement).map(\.port), workers: workers)
      firstRegions = Self.regions(of: board)
      for options in configuration.devices { try board.add(options, with: configuration) }
      board.slots.prepare()
      try board.placeResources()
      self.configuration = configuration
      firstDevices = board.devices.all.map(\.identity)
      hotplug = Hotplug(
        board: board, configuration: configuration, work: work,
        guestHasStarted: { [hasStarted] in hasStarted.value > 0 },
        notify: { [log] in if case .deviceDeleted = $0 { log.counts.withLock { $0.deleted += 1 } } })
    }

    // MARK: The machine's thread

    func start() {
      hasStarted.value = 1
    }

    func ask(_ request: MachineRequest) {
      let isAddition = if case .addDevice = request { true } else { false }
      log.counts.withLock { $0.asked += 1 }
      board.events.post(
        .request(
          PendingRequest(request) { [log] error in
            log.counts.withLock {
              $0.answered += 1
              if isAddition, error == nil { $0.added += 1 }
            }
          }))
    }

    /// Handles one event.
    /// - Returns: false if there is none.
    func act() throws(Finding) -> Bool {
      guard !hasEnded, let event = board.events.take() else { return false }
      switch event {
      case .request(let pending):
        do throws(RequestError) {
          switch pending.request {
          case .addDevice(let description): hotplug.add(description, answering: pending)
          case .removeDevice(let name, let isSurprise):
            try hotplug.remove(name, isSurprise: isSurprise)
            pending.answer()
          case .addNode(let node): pending.answer(try result { () throws(RequestError) in try board.add(node) })
          case .removeNode(let id): pending.answer(try result { () throws(RequestError) in try board.removeNode(id) })
          case .addObject(let object):
            pending.answer(try result { () throws(RequestError) in try board.add(object) })
          case .removeObject(let id):
            pending.answer(try result { () throws(RequestError) in try board.removeObject(id) })
          default: pending.answer(.ended)
          }
        } catch {
          pending.answer(error)
        }
      case .hostRequest(let identity, let patience): hotplug.takeBack(identity, patience: patience)
      case .surpriseRemoval(let identity): hotplug.pull(identity)
      case .slotReleased(let port): hotplug.slotReleased(port)
      case .left(let identities): hotplug.takeDown(identities)
      case .continuation(let rest): rest.run()
      case .reset, .hostReset, .tripleFault: try reset()
      case .shutdown, .debugExit, .crashed, .quit, .deviceError: hasEnded = true
      }
      return true
    }

    private func result(_ body: () throws(RequestError) -> Void) throws(RequestError) -> RequestError? {
      try body()
      return nil
    }

    /// Resets as `RunningMachine` does.
    private func reset() throws(Finding) {
      _ = board.events.forgetGuestEvents()
      board.completeRemovals()
      board.reset()
      hotplug.guestWasReset()
      do {
        try board.placeResources()
      } catch {
        throw Finding(text: "plugged devices have no space after a reset: \(error)")
      }
      try Finding.unless(board.devices.portsWithRemovalRequests.isEmpty, "a removal request remains after a reset")
    }

    /// Does all pending work, except work that waits for time or for the guest.
    func settle() throws(Finding) {
      var rounds = 0
      while true {
        let isBusy = work.run()
        let hasActed = try act()
        guard isBusy || hasActed else { break }
        rounds += 1
        try Finding.unless(rounds < 1000, "the machine never becomes idle")
      }
      workers.run()
    }

    // MARK: Invariants

    private static func regions(of board: Board) -> Set<ObjectIdentifier> {
      Set((board.memoryBus.attachedRegions + board.ioBus.attachedRegions).map { ObjectIdentifier($0.device) })
    }

    /// Checks the invariants after each step.
    func check() throws(Finding) {
      let buses = [board.rootBus] + board.busRoutes.ports.map(\.bus)
      for bus in buses {
        for function in bus.all {
          if let device = board.devices.device(of: function) {
            try Finding.unless(
              board.devices.phase(of: device.identity) != .leaving, "\(device.path) is leaving, but is on its bus")
            if !known.contains(where: { $0.function === function }) {
              known.append(WeakFunction(function: function, device: device.identity))
            }
          } else {
            try Finding.unless(bus === board.rootBus, "a function that the tree does not list")
          }
        }
      }
      let devices = board.devices.all
      for device in devices {
        try Finding.unless(!gone.contains(device.identity), "\(device.path) has come back")
        let phase = board.devices.phase(of: device.identity)
        guard phase == .plugged || phase == .removalRequested else { continue }
        for function in board.devices.functions(of: device.identity) {
          try Finding.unless(
            board.bus(of: function).all.contains { $0 === function }, "\(device.path) is plugged, but is on no bus")
        }
      }
      let now = Set(devices.map(\.identity))
      gone.formUnion(present.subtracting(now))
      present = now
      try checkFunctions()
      try checkSlots()
      try Finding.unless(
        Set(firstDevices).isSubset(of: now) || hasEnded, "a device left a bus without hotplug")
    }

    /// Checks that devices that have left decode nothing, answer nothing and make no requests.
    private func checkFunctions() throws(Finding) {
      for region in board.memoryBus.attachedRegions + board.ioBus.attachedRegions {
        guard let bar = region.device as? any BaseAddressRegion else { continue }
        try Finding.unless(!bar.function.environment.isRefused, "a BAR of a removed device is on the bus")
      }
      known.removeAll { $0.function == nil }
      for entry in known {
        guard let function = entry.function, gone.contains(entry.device) else { continue }
        try Finding.unless(!function.requester.busMasterEnable, "a removed device has bus mastering enabled")
        try Finding.unless(
          function.readConfiguration(offset: 0, width: .doubleword) == 0xffff_ffff, "a removed device answers")
      }
    }

    /// Checks that Slot Status reports whether the slot is occupied.
    private func checkSlots() throws(Finding) {
      for port in board.busRoutes.ports {
        guard let express = FuzzGuest.capability(0x10, of: port.function) else { continue }
        let status = port.function.readConfiguration(offset: express + 0x1a, width: .word)
        try Finding.unless(
          (status & 0x40 != 0) == !port.bus.isEmpty,
          "port \(port.function.requester.id): slot status \(status), and the bus is empty: \(port.bus.isEmpty)")
      }
    }

    /// Removes all added devices. Then names, slots and backends must be free, and nothing may be leaked.
    func finish() throws(Finding) {
      if !hasEnded {
        try clear()
        try checkNothingIsTaken()
        try clear()
      }
      board.events.close()
      hotplug.stop()
      board.removeDevices()
      workers.run()
      try Finding.unless(
        Self.regions(of: board) == firstRegions, "regions are leaked: \(Self.regions(of: board).count)")
      let counts = log.counts.withLock { $0 }
      try Finding.unless(counts.asked == counts.answered, "\(counts.asked) requests, \(counts.answered) answers")
      if !hasEnded {
        try Finding.unless(counts.added == counts.deleted, "\(counts.added) added, \(counts.deleted) reported deleted")
      }
      for entry in known where entry.function != nil {
        throw Finding(text: "a function is still referenced after its board has removed it")
      }
    }

    /// Requests the removal of all added devices, several times. After that, none of them may be left.
    private func clear() throws(Finding) {
      for _ in 0..<4 {
        try settle()
        for device in board.devices.all where !firstDevices.contains(device.identity) {
          ask(.removeDevice(device.path, isSurprise: true))
        }
        try settle()
        // Let the time pass that a slot waits for its guest.
        _ = clock.advance(to: clock.now + 10_000_000_000)
        try settle()
        try check()
        if hasEnded { return }
      }
      try Finding.unless(
        board.devices.all.map(\.identity) == firstDevices,
        "devices left: \(board.devices.all.map(\.path).joined(separator: " "))")
    }

    private func checkNothingIsTaken() throws(Finding) {
      for node in board.devices.blockNodes.reversed() {
        do {
          try board.removeNode(node.id)
        } catch {
          throw Finding(text: "node \(node.id) is not free: \(error)")
        }
      }
      for object in board.devices.objects {
        guard let id = object.id else { continue }
        do {
          try board.removeObject(id)
        } catch {
          throw Finding(text: "object \(id) is not free: \(error)")
        }
      }
      let before = log.counts.withLock { $0.added }
      for (number, port) in Self.ports.dropLast().enumerated() {
        ask(
          .addDevice(
            DeviceDescription(EduOptions.self, bus: port, [PropertyAssignment(name: "id", value: "d\(number)")])))
      }
      try settle()
      _ = clock.advance(to: clock.now + 10_000_000_000)
      try settle()
      try check()
      let added = log.counts.withLock { $0.added } - before
      try Finding.unless(hasEnded || added == 3, "of three empty slots, \(added) take a device")
    }
  }

  /// Host work that is done when the input decides.
  final class FuzzHostWork: HostWork {
    private struct Piece: Sendable {
      let run: @Sendable () -> Void
      let cancel: @Sendable () -> Void
    }

    private let state = Mutex((pieces: [Piece](), isStopped: false))

    func submit(_ run: @escaping @Sendable () -> Void, orElse cancel: @escaping @Sendable () -> Void) {
      let isAccepted = state.withLock { state in
        if !state.isStopped { state.pieces.append(Piece(run: run, cancel: cancel)) }
        return !state.isStopped
      }
      if !isAccepted { cancel() }
    }

    /// Does the oldest piece of work.
    /// - Returns: false if there is none.
    func run() -> Bool {
      let piece = state.withLock { $0.pieces.isEmpty ? nil : $0.pieces.removeFirst() }
      piece?.run()
      return piece != nil
    }

    func stop() {
      let pieces = state.withLock { state in
        defer { state = ([], true) }
        return state.pieces
      }
      for piece in pieces { piece.cancel() }
    }
  }

  /// An unlinked file, for disks.
  enum FuzzImage {
    static let path: String = {
      var template = Array("/tmp/nestling-fuzz-XXXXXX".utf8CString)
      let descriptor = mkstemp(&template)
      unlink(template)
      ftruncate(descriptor, 1 << 16)
      return "/proc/self/fd/\(descriptor)"
    }()
  }
#endif
