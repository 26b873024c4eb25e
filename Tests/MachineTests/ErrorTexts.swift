@testable import Control
import Machine
import Passthrough

// Control has the text for errors. These tests compare what people read.

extension StartError: CustomStringConvertible {
  public var description: String { ErrorText.text(for: self) }
}

extension PassthroughError: CustomStringConvertible {
  public var description: String { ErrorText.text(for: StartError.passthrough(self)) }
}

extension BootError: CustomStringConvertible {
  public var description: String { ErrorText.text(for: self) }
}
