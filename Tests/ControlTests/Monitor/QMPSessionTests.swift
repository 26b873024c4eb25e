import JSON
import Machine
import Testing

@testable import Control

/// Compares the protocol word for word. The errors are those of QEMU's tests/qtest/qmp-test.c.
@Suite struct QMPSessionTests {
  private func generic(_ text: String) -> String {
    #"{"error": {"class": "GenericError", "desc": "\#(text)"}}"#
  }
  private func notFound(_ text: String) -> String {
    #"{"error": {"class": "CommandNotFound", "desc": "\#(text)"}}"#
  }

  @Test("the greeting has QEMU's form")
  func theGreeting() {
    let client = QMPClient(negotiate: false)
    #expect(
      client.greeting
        == #"{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "nestling-0.1.0"}, "#
        + #""capabilities": []}}"# + "\r\n")
  }

  @Test("commands need the negotiation of capabilities, which happens once")
  func negotiation() {
    var client = QMPClient(negotiate: false)
    let expecting = notFound("Expecting capabilities negotiation with 'qmp_capabilities'")
    #expect(client.send(#"{"execute": "query-version"}"#) == [expecting])
    #expect(client.send(#"{"execute": "nonsense"}"#) == [expecting])
    #expect(
      client.send(#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#)
        == [generic("Capability oob not available")])
    #expect(
      client.send(#"{"execute": "qmp_capabilities", "arguments": {"enable": ["x"]}}"#)
        == [generic("Parameter 'enable[0]' does not accept value 'x'")])
    #expect(!client.isNegotiated)
    #expect(client.send(#"{"execute": "qmp_capabilities", "id": 7}"#) == [#"{"return": {}, "id": 7}"#])
    #expect(client.isNegotiated)
    #expect(
      client.send(#"{"execute": "qmp_capabilities"}"#)
        == [notFound("Capabilities negotiation is already complete, command ignored")])
  }

  @Test("each malformed request gets QEMU's error")
  func malformedRequests() {
    var client = QMPClient()
    let cases: [(String, String)] = [
      ("null\n", "QMP input must be a JSON object"), ("[]", "QMP input must be a JSON object"),
      ("{}", "QMP input lacks member 'execute'"),
      (#"{"execute": true}"#, "QMP input member 'execute' must be a string"),
      (#"{"execute": "no-such-cmd", "arguments": []}"#, "QMP input member 'arguments' must be an object"),
      (#"{"execute": "no-such-cmd", "extra": true}"#, "QMP input member 'extra' is unexpected"),
      (#"{"exec-oob": "query-status"}"#, "QMP input member 'exec-oob' is unexpected"),
      (#"{"execute": "query-status", "arguments": {"x": 1}}"#, "Parameter 'x' is unexpected"),
      (#"{"execute": "human-monitor-command"}"#, "Parameter 'command-line' is missing"),
      (
        #"{"execute": "human-monitor-command", "arguments": {"command-line": 1}}"#,
        "Invalid parameter type for 'command-line', expected: string"
      ),
      (
        #"{"execute": "qom-list-types", "arguments": {"abstract": "yes"}}"#,
        "Invalid parameter type for 'abstract', expected: boolean"
      ),
      (
        #"{"execute": "human-monitor-command", "arguments": {"command-line": "help", "cpu-index": 99}}"#,
        "Parameter 'cpu-index' expects a CPU number"
      ),
    ]
    for (request, text) in cases { #expect(client.send(request) == [generic(text)], "\(request)") }
    #expect(client.send(#"{"execute": "no-such-cmd"}"#) == [notFound("The command no-such-cmd has not been found")])
  }

  @Test("the id is returned unchanged")
  func theIdComesBackAsItWas() {
    var client = QMPClient()
    #expect(
      client.send(#"{"execute": "query-name", "id": {"a": [null, 1.5, "x"]}}"#)
        == [#"{"return": {}, "id": {"a": [null, 1.5, "x"]}}"#])
    #expect(
      client.send(#"{"id": "cookie#1", "execute": "nope"}"#)
        == [
          #"{"id": "cookie#1", "error": {"class": "CommandNotFound", "desc": "The command nope has not been found"}}"#
        ])
  }

  /// As in QEMU (qobject/qnum.c), integers are exact up to 2^64-1. Where a signed integer is expected, a value above
  /// 2^63-1 is refused.
  @Test("a request's id of 64 bits is returned exactly; an argument above the signed 64-bit range is refused")
  func integersOf64Bits() {
    var client = QMPClient()
    for number in ["18446744073709551615", "9223372036854775808", "-9223372036854775808"] {
      #expect(
        client.send(#"{"execute": "query-name", "id": [\#(number)]}"#) == [#"{"return": {}, "id": [\#(number)]}"#])
    }
    let arguments = #"{"command-line": "help", "cpu-index": 18446744073709551615}"#
    #expect(
      client.send(#"{"execute": "human-monitor-command", "arguments": \#(arguments)}"#)
        == [generic("Invalid parameter type for 'cpu-index', expected: integer")])
  }

  @Test("requests are answered even if they arrive byte by byte, two at once or after garbage")
  func requestsHoweverTheyArrive() {
    var client = QMPClient()
    var seen: [String] = []
    for byte in "{'execute': 'query-kvm'}\r\n".utf8 { seen += client.send([byte]) }
    #expect(seen == [#"{"return": {"enabled": true, "present": true}}"#])
    #expect(client.send(#"{"execute": "query-name"}{"execute": "query-name"}"#).count == 2)
    let answers = client.send("{]\n%p\u{1}{\"execute\": \"query-name\"}")
    #expect(answers.last == #"{"return": {}}"# && answers.count >= 3)
    #expect(answers.dropLast().allSatisfy { $0.contains("JSON parse error") })
  }

  @Test("pretty answers have indented lines")
  func prettyAnswersHaveLines() {
    var client = QMPClient(pretty: true)
    #expect(client.send(#"{"execute": "query-name"}"#) == ["{\n    \"return\": {}\n}"])
  }

  @Test("while a client is slow to read answers, its further requests wait")
  func furtherRequestsWaitForAClientThatIsBehind() {
    var session = QMPSession()
    let machine = RecordingMachine()
    var sent = 0
    func receive(_ text: String) -> Int {
      session.receive(Array(text.utf8), on: machine) { output in
        if case .perform(let action) = output { action() } else { sent += 1 }
        return false
      }
    }
    #expect(receive(#"{"execute": "qmp_capabilities"}{}"#) == 31 && sent == 1)
    // A request is carried out whether or not its answer is read.
    #expect(receive(#"{"execute": "quit"}{}"#) == 19 && sent == 2 && machine.requests == ["quit"])
  }

  @Test("quit is answered before it is carried out")
  func theAnswerComesBeforeTheEnd() {
    let machine = RecordingMachine()
    var session = QMPSession()
    var order: [String] = []
    let text = #"{"execute": "qmp_capabilities"} {"execute": "quit"}"#
    session.receive(Array(text.utf8), on: machine) { output in
      switch output {
      case .send: order.append("answer, \(machine.requests)")
      case .negotiated: order.append("negotiated, \(machine.requests)")
      case .perform(let action): action()
      }
      return true
    }
    #expect(order == ["negotiated, []", "answer, []"] && machine.requests == ["quit"])
  }

  @Test("notices become QEMU's events with timestamp and data; a triple fault becomes no event")
  func events() throws {
    func text(_ notice: MachineNotice) -> String? {
      notice.event(at: 1_700_000_000_123_456_789).map { String(decoding: $0.text(), as: UTF8.self) }
    }
    let time = #"{"timestamp": {"seconds": 1700000000, "microseconds": 123456}, "event": "#
    #expect(
      text(.reset(.monitorReset)) == time
        + #""RESET", "data": {"guest": false, "reason": "host-qmp-system-reset"}}"#)
    #expect(text(.reset(.guestReset)) == time + #""RESET", "data": {"guest": true, "reason": "guest-reset"}}"#)
    #expect(
      text(.shutdown(.monitorQuit)) == time + #""SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}"#)
    #expect(
      text(.shutdown(.guestShutdown)) == time + #""SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#)
    #expect(text(.shutdown(.signal)) == time + #""SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}"#)
    #expect(text(.paused) == time + #""STOP"}"# && text(.resumed) == time + #""RESUME"}"#)
    #expect(
      text(.deviceDeleted(try Identifier(text: "nic0"), path: "/machine/peripheral/nic0")) == time
        + #""DEVICE_DELETED", "data": {"path": "/machine/peripheral/nic0", "device": "nic0"}}"#)
    #expect(
      text(.deviceDeleted(nil, path: "/machine/peripheral-anon/device[0]")) == time
        + #""DEVICE_DELETED", "data": {"path": "/machine/peripheral-anon/device[0]"}}"#)
    #expect(
      text(.unplugRefused(try Identifier(text: "nic0"), path: "/machine/peripheral/nic0")) == time
        + #""DEVICE_UNPLUG_GUEST_ERROR", "data": {"path": "/machine/peripheral/nic0", "device": "nic0"}}"#)
    #expect(
      text(.unplugRefused(nil, path: "/machine/peripheral-anon/device[0]")) == time
        + #""DEVICE_UNPLUG_GUEST_ERROR", "data": {"path": "/machine/peripheral-anon/device[0]"}}"#)
    #expect(
      text(.deviceStatus(try Identifier(text: "nic0"), slot: "3", source: 3, status: 0x80)) == time
        + #""ACPI_DEVICE_OST", "data": {"info": {"device": "nic0", "slot": "3", "slot-type": "PCI", "source": 3, "#
        + #""status": 128}}}"#)
    #expect(
      text(.deviceStatus(nil, slot: "0", source: 1, status: 0)) == time
        + #""ACPI_DEVICE_OST", "data": {"info": {"slot": "0", "slot-type": "PCI", "source": 1, "status": 0}}}"#)
    #expect(text(.powerDown) == time + #""POWERDOWN"}"#)
    #expect(text(.tripleFault(processor: 0, instructionPointer: nil)) == nil)
  }
}
