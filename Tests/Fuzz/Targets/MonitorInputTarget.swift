import Control
import JSON
import Machine
import Synchronization

// The input is what a client sends to a monitor: JSON for QMP, before or after the negotiation of capabilities, or
// lines for the human monitor. Each answer of QMP must be a JSON object with a return or an error.

extension FuzzTarget {
  static let monitor = FuzzTarget("monitor") { input throws(Finding) in
    let form = input.byte()
    let machine = UnmovedMachine()
    var bytes: [UInt8] = []
    while !input.isEmpty { bytes.append(input.byte()) }
    // Send the bytes in one piece or in several.
    let size = form & 0x80 == 0 ? bytes.count + 1 : Int(form >> 2 & 0xf) + 1
    var answer: [UInt8] = []
    func act(_ output: QMPSession.Output) -> Bool {
      switch output {
      case .send(let part), .negotiated(let part): answer += part
      case .perform(let action): action()
      }
      return true
    }
    if form & 3 == 3 {
      var session = HumanSession(echoes: form & 4 != 0)
      for start in stride(from: 0, to: bytes.count, by: size) {
        session.receive(bytes[start..<min(start + size, bytes.count)], on: machine, act)
      }
      return
    }
    var session = QMPSession(pretty: form & 3 == 2)
    if form & 3 != 0 { session.receive(Array(#"{"execute":"qmp_capabilities"}"#.utf8), on: machine, act) }
    for start in stride(from: 0, to: bytes.count, by: size) {
      session.receive(bytes[start..<min(start + size, bytes.count)], on: machine, act)
    }
    // All answers must be JSON, one message after the other.
    var position = 0
    while position < answer.count {
      do {
        let value = try JSONValue.next(in: answer, at: &position)
        guard case .object(let object) = value else { throw Finding(text: "an answer that is not an object") }
        try Finding.unless(
          object["return"] != nil || object["error"] != nil, "an answer that is neither a return nor an error")
        while position < answer.count, answer[position] <= 0x20 { position += 1 }
      } catch let error as JSONValue.ParseError {
        throw Finding(text: "at \(position): \(error), in \(String(decoding: answer, as: UTF8.self))")
      } catch let error as Finding {
        throw error
      } catch {
        throw Finding(text: "\(error)")
      }
    }
  }
}

/// A machine that ignores every request except pause and resume.
private final class UnmovedMachine: MonitorTarget, MachineControl {
  let configuration = MachineConfiguration()
  let descriptors = MonitorDescriptors()
  private let current = Mutex(MachineStatus.running)

  var control: any MachineControl { self }
  var status: MachineStatus { current.withLock { $0 } }
  func requestReset() {}
  func requestQuit(_ cause: MachineCause) {}
  func requestPowerDown() {}
  func ask(_ request: MachineRequest, _ answer: @escaping @Sendable (RequestError?) -> Void) {
    switch request {
    case .pause: current.withLock { $0 = .paused }
    case .resume: current.withLock { $0 = .running }
    case .addDevice, .removeDevice, .addNode, .removeNode, .addObject, .removeObject, .resizeNode, .addNetdev,
      .removeNetdev, .setLink, .setRebootAction:
      break
    }
    answer(nil)
  }
  func addListener(_ listener: @escaping @Sendable (MachineNotice) -> Void) {}

  var functions: [MachineInspection.Function] { [] }
  var chardevs: [MachineInspection.ChardevState] { [] }
  var devices: [Device] { [] }
  var objects: [any ObjectOptions] { [] }
  var blockNodes: [MachineInspection.BlockState] { [] }
  func files(removedBy request: MachineRequest) -> [PassedFile] { [] }
  func addChardev(_ options: any ChardevOptions, id: Identifier) throws(Chardevs.Problem) {}
  func removeChardev(_ name: String) throws(Chardevs.Problem) {}
  var freeNetdevs: [MachineInspection.NetdevState] { [] }
  var networkCards: [MachineInspection.NetworkCard] { [] }
  var addressSpaces: [MachineInspection.AddressSpace] { [] }
  var processorThreads: [Int] { [1] }
  var exitSummaries: [ExitSummary] { [] }
  func measureExits(_ isOn: Bool) {}
  func remappingText() -> String { "none\n" }
  func translationText(_ arguments: [String]) -> String { arguments.joined(separator: " ") + "\n" }
}
