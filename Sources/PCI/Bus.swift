import Hardware
import Synchronization

/// A PCI bus: functions by their addresses. Bus 0 of the root complex, or the link below a port.
///
/// Lock order: its lock is a leaf.
public final class Bus: Sendable {
  /// An address that has a function already.
  public struct AddressInUse: Error, Hashable, Sendable {
    public let address: RequesterID
  }

  private struct State {
    var number: UInt8
    var functions: [UInt8: Function] = [:]
  }

  /// A link leads to one device, number 0: no other answers (PCI Express Base 7.3.1).
  public let isLink: Bool
  private let state: Mutex<State>

  public init(number: UInt8, isLink: Bool = false) {
    self.isLink = isLink
    state = Mutex(State(number: number))
  }

  /// Software numbers the buses below bridges.
  public var number: UInt8 { state.withLock { $0.number } }

  /// Gives the bus another number, and with it the requests of its functions another source.
  func renumber(_ number: UInt8) {
    state.withLock { state in
      guard number != state.number else { return }
      state.number = number
      for function in state.functions.values { function.requester.id = function.requester.id.on(bus: number) }
    }
  }

  /// Puts a function on the bus, whose number it takes.
  public func add(_ function: Function) throws(AddressInUse) {
    function.join(self)
    let added = state.withLock { state in
      let address = function.requester.id
      precondition(!isLink || address.device == 0, "only device 0 is on a link")
      guard state.functions[address.deviceFunction] == nil else { return false }
      function.requester.id = address.on(bus: state.number)
      state.functions[address.deviceFunction] = function
      return true
    }
    guard added else { throw AddressInUse(address: function.requester.id) }
    // Refused meanwhile: either `refuse` found it here, or this finds it refused.
    if function.environment.isRefused { remove(function) }
  }

  /// Takes a function off its address, which answers no more then. An access that found it before may be in flight.
  public func remove(_ function: Function) {
    state.withLock { state in
      let number = function.requester.id.deviceFunction
      if state.functions[number] === function { state.functions[number] = nil }
    }
  }

  /// The function that answers at an address. On a link none does without function 0: that is how software learns of the
  /// device, and it comes last.
  public func function(at deviceFunction: UInt8) -> Function? {
    state.withLock { isLink && $0.functions[0] == nil ? nil : $0.functions[deviceFunction] }
  }

  /// In order of address.
  public var all: [Function] {
    state.withLock { $0.functions.sorted { $0.key < $1.key }.map(\.value) }
  }

  /// Whether no function answers.
  public var isEmpty: Bool { state.withLock { isLink ? $0.functions[0] == nil : $0.functions.isEmpty } }

  /// The lowest device number without a function, from `first` on.
  public func freeDevice(from first: UInt8) -> UInt8? {
    state.withLock { state in
      (0..<32).first { device in device >= first && !state.functions.keys.contains { $0 >> 3 == device } }
    }
  }
}

extension RequesterID {
  /// The same device and function on another bus.
  func on(bus: UInt8) -> RequesterID { RequesterID(rawValue: UInt16(bus) << 8 | UInt16(deviceFunction)) }
}
