import Hardware
import KVM
import Linux
import Synchronization

/// The guest's CPUs. Each has its own thread between a start and a stop.
final class KVMProcessors: Processors {
  private let vcpus: [VCPU]
  /// The measurements of the CPUs' exits, in the CPUs' order.
  private let exitTimes: [ExitTimes]
  private let resetStates: [VCPUState]
  private let threads = Mutex<[Thread]>([])
  private let numbers = Mutex<[Int: Int]>([:])
  private let stopping = Atomic<Bool>(false)
  private let board: Board

  init(
    machine: VirtualMachine, count: Int, identification: ProcessorIdentification, board: Board
  ) throws(KVMError) {
    self.board = board
    var vcpus: [VCPU] = []
    var states: [VCPUState] = []
    for id in 0..<count {
      let vcpu = try VCPU(id: id, of: machine)
      try vcpu.setProcessorIdentification(identification.entries(for: UInt32(id)))
      vcpus.append(vcpu)
      states.append(try vcpu.readState())
    }
    self.vcpus = vcpus
    exitTimes = vcpus.map { _ in ExitTimes() }
    resetStates = states
  }

  func reset(entry: BootEntry) throws(StartError) {
    do {
      for (vcpu, state) in zip(vcpus, resetStates) { try vcpu.restore(state) }
      try vcpus[0].enter(ProcessorEntry(entry), from: resetStates[0])
    } catch {
      throw .kvm(device: "", error)
    }
  }

  func start() throws(SystemError) {
    stopping.store(false, ordering: .releasing)
    for vcpu in vcpus { vcpu.clearExitRequest() }
    for vcpu in vcpus {
      let thread = try Thread(name: "vCPU \(vcpu.id)") { [self] in
        numbers.withLock { $0[vcpu.id] = Thread.currentID }
        run(vcpu, exitTimes[vcpu.id])
      }
      threads.withLock { $0.append(thread) }
    }
  }

  var threadIDs: [Int] {
    numbers.withLock { numbers in numbers.sorted { $0.key < $1.key }.map(\.value) }
  }

  func requestStop() {
    stopping.store(true, ordering: .releasing)
    for vcpu in vcpus { vcpu.requestExit() }
    threads.withLock { for thread in $0 { thread.kick() } }
  }

  func stop() {
    requestStop()
    let joined = threads.withLock { threads in
      defer { threads = [] }
      return threads
    }
    for thread in joined { thread.join() }
    numbers.withLock { $0 = [:] }
  }

  func measureExits(_ isOn: Bool) {
    for times in exitTimes { times.measure(isOn) }
  }

  var exitSummaries: [ExitSummary] { exitTimes.compactMap(\.read) }

  private func run(_ vcpu: VCPU, _ times: ExitTimes) {
    var beginning: ExitTimes.Beginning?
    while !stopping.load(ordering: .acquiring) {
      do {
        // `next` may split one exit into several pieces. The exit ends when the last piece is handled.
        if !vcpu.hasPiece, let begun = beginning.take() { times.end(begun) }
        let exit = try vcpu.next()
        if beginning == nil { beginning = times.begin(exit) }
        switch exit {
        case .portRead(let port, let width):
          vcpu.supply(board.readPort(port, width))
        case .portWrite(let port, let width, let value):
          board.writePort(port, width, value)
        case .memoryRead(let address, let width):
          vcpu.supply(board.readMemory(address, width))
        case .memoryWrite(let address, let width, let value):
          board.writeMemory(address, width, value)
        case .endOfInterrupt(let vector): board.endOfInterrupt(vector: vector)
        case .halt, .interrupted: break
        case .shutdown:
          board.events.post(
            .tripleFault(processor: vcpu.id, instructionPointer: try? vcpu.instructionPointer()))
        case .systemEvent(let type): board.events.post(type == 2 ? .reset : .shutdown)
        case .internalError(let suberror):
          crash(
            .internalError(
              suberror: suberror, processor: vcpu.id, instructionPointer: try? vcpu.instructionPointer()))
        case .entryFailed(let reason): crash(.entryFailed(reason: reason, processor: vcpu.id))
        case .unknown(let reason): crash(.unknownExit(reason: reason, processor: vcpu.id))
        }
      } catch {
        crash(.kvm(error))
      }
    }
  }

  private func crash(_ reason: GuestCrash) { board.events.post(.crashed(reason)) }
}

extension ProcessorEntry {
  fileprivate init(_ entry: BootEntry) {
    switch entry {
    case .longMode(let entry):
      self = .longMode(
        instructionPointer: entry.instructionPointer, rsi: entry.bootParameters, pageTableRoot: entry.pageTableRoot,
        descriptorTableBase: entry.descriptorTableBase, descriptorTableLimit: entry.descriptorTableLimit,
        codeSelector: LongModeEntry.codeSelector, dataSelector: LongModeEntry.dataSelector)
    case .protectedMode(let entry):
      self = .protectedMode(
        instructionPointer: entry.instructionPointer, eax: entry.accumulator, ebx: entry.startInformation)
    }
  }
}
