@testable import Machine

/// All that is typed is the guest's.
struct PassingInterpreter: InputInterpreter {
  func receive(_ bytes: ArraySlice<UInt8>, guestBytes: inout [UInt8]) -> (used: Int, action: InputAction?) {
    guestBytes += bytes
    return (bytes.count, nil)
  }
}
