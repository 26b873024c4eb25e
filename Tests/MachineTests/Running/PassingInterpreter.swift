@testable import Machine

/// An interpreter that passes all input to the guest.
struct PassingInterpreter: InputInterpreter {
  let onlyFrontendText = ""

  func receive(_ bytes: ArraySlice<UInt8>, guestBytes: inout [UInt8]) -> (used: Int, action: InputAction?) {
    guestBytes += bytes
    return (bytes.count, nil)
  }
}
