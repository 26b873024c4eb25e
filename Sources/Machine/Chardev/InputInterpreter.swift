/// Finds commands to Nestling in typed input, before a frontend gets the input.
public protocol InputInterpreter: Sendable {
  /// - Parameter guestBytes: gets the bytes for the frontend with the focus, up to the first action.
  /// - Returns: how many bytes of the input are used, and the action to carry out then; nil if there is none.
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
