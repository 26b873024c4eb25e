/// Looks through what is typed for commands to Nestling itself, before the guest gets it.
public protocol InputInterpreter: Sendable {
  /// - Parameter guestBytes: what is for the guest is appended there.
  /// - Returns: what is to be done, in order.
  mutating func receive(_ bytes: [UInt8], guestBytes: inout [UInt8]) -> [InputAction]
}

public enum InputAction: Hashable, Sendable {
  /// End Nestling.
  case exit
  /// Text for the terminal, not the guest.
  case show(String)
}
