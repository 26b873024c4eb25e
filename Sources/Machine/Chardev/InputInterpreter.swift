/// Looks through what is typed for commands to Nestling itself, before a frontend gets it.
public protocol InputInterpreter: Sendable {
  /// - Parameter guestBytes: what is for whoever has the focus is appended there, up to the first action.
  /// - Returns: how much of the input that used up, and what is to be done then; nil for nothing more.
  mutating func receive(_ bytes: ArraySlice<UInt8>, guestBytes: inout [UInt8]) -> (used: Int, action: InputAction?)
}

public enum InputAction: Hashable, Sendable {
  /// End Nestling.
  case exit
  /// Text for the terminal alone.
  case show(String)
  /// What follows is for the next frontend.
  case switchFocus
}
