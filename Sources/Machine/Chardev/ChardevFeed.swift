import Linux

/// Input that a character device has read and its frontends have not taken yet, and the frontend with the focus. Only
/// `ChardevInput` uses it.
struct ChardevFeed {
  /// The size of one read, in bytes.
  static let piece = 4096

  private let frontends: [any ChardevFrontend]
  private var pending: [[UInt8]]
  private var focus = 0
  /// Open files that came with bytes, the frontend that gets them, and the number of its waiting bytes before them. The
  /// device reads more only after the frontend has the files, so at most the files of one message wait here.
  private var passed: (files: [PassedDescriptor], frontend: Int, position: Int)?
  private var interpreter: (any InputInterpreter)?

  init(frontends: [any ChardevFrontend], interpreter: (any InputInterpreter)?) {
    self.frontends = frontends
    self.interpreter = interpreter
    pending = frontends.map { _ in [] }
  }

  var wantsMore: Bool { pending[focus].count < Self.piece && passed == nil }

  func connected() {
    for (index, frontend) in frontends.enumerated() {
      frontend.connected()
      if index != focus { frontend.focusChanged(false) }
    }
  }

  mutating func disconnected() {
    passed = nil
    for frontend in frontends { frontend.disconnected() }
  }

  /// Takes open files that came with the next bytes.
  mutating func take(_ files: [PassedDescriptor]) {
    if !files.isEmpty { passed = (files, focus, pending[focus].count) }
  }

  /// Takes bytes that were read.
  /// - Returns: the actions for the caller, in order. A change of focus is already carried out.
  mutating func take(_ bytes: [UInt8]) -> [InputAction] {
    guard interpreter != nil else {
      pending[focus] += bytes
      return []
    }
    var rest = bytes[...]
    var actions: [InputAction] = []
    while !rest.isEmpty, let step = interpreter?.receive(rest, guestBytes: &pending[focus]) {
      rest = rest.dropFirst(max(1, step.used))
      guard let action = step.action else { continue }
      actions.append(action == .switchFocus ? switchFocus() : action)
      if action == .exit { break }
    }
    return actions
  }

  private mutating func switchFocus() -> InputAction {
    guard frontends.count > 1 else { return .show(interpreter?.onlyFrontendText ?? "") }
    // Input from before the switch belongs to the frontend that had the focus.
    deliver()
    frontends[focus].focusChanged(false)
    focus = (focus + 1) % frontends.count
    frontends[focus].focusChanged(true)
    return .switchFocus
  }

  /// Delivers to every frontend as many bytes as it takes now.
  mutating func deliver() {
    for (index, frontend) in frontends.enumerated() {
      while true {
        var ready = pending[index].count
        if let passed, passed.frontend == index {
          ready = passed.position
          if ready == 0 {
            self.passed = nil
            frontend.receive(passed.files)
            continue
          }
        }
        guard ready > 0 else { break }
        let taken = frontend.receive(pending[index][..<ready])
        guard taken > 0 else { break }
        pending[index].removeFirst(taken)
        if passed?.frontend == index { passed?.position -= taken }
      }
    }
  }
}

/// Finds the Ctrl-A commands in typed input, before a frontend gets the input.
public protocol InputInterpreter: Sendable {
  /// Shown when the focus should change and there is only one frontend.
  var onlyFrontendText: String { get }
  /// - Parameter guestBytes: gets the bytes for the frontend with the focus, up to the first action.
  /// - Returns: the number of input bytes that are used, and the action to carry out after them; nil for no action.
  mutating func receive(_ bytes: ArraySlice<UInt8>, guestBytes: inout [UInt8]) -> (used: Int, action: InputAction?)
}

public enum InputAction: Hashable, Sendable {
  /// End Nestling.
  case exit
  /// Show text on the terminal only.
  case show(String)
  /// Give the focus to the next frontend.
  case switchFocus
}
