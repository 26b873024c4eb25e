import Hardware
import Synchronization

/// A PCI bus with functions at device and function numbers: bus 0 of the root complex, or the link below a port.
///
/// Lock order: code that holds the bus's lock takes no other lock.
public final class Bus: Sendable {
  /// The address already has a function.
  public struct AddressInUse: Error, Hashable, Sendable {
    public let address: RequesterID
  }

  private struct State {
    var number: UInt8
    var functions: [UInt8: Function] = [:]
  }

  /// Whether the bus is a link, which has only device 0 (PCI Express Base 7.3.1).
  public let isLink: Bool
  private let state: Mutex<State>

  public init(number: UInt8, isLink: Bool = false) {
    self.isLink = isLink
    state = Mutex(State(number: number))
  }

  /// The bus number. Software numbers the buses below bridges.
  public var number: UInt8 { state.withLock { $0.number } }

  /// Changes the bus number, which also changes the requester IDs of the bus's functions.
  func renumber(_ number: UInt8) {
    state.withLock { state in
      guard number != state.number else { return }
      state.number = number
      for function in state.functions.values { function.requester.id = function.requester.id.on(bus: number) }
    }
  }

  /// Adds a function and gives it the bus's number.
  public func add(_ function: Function) throws(AddressInUse) {
    function.join(self)
    let added = state.withLock { state in
      let address = function.requester.id
      precondition(!isLink || address.device == 0, "a link has only device 0")
      guard state.functions[address.deviceFunction] == nil else { return false }
      function.requester.id = address.on(bus: state.number)
      state.functions[address.deviceFunction] = function
      return true
    }
    guard added else { throw AddressInUse(address: function.requester.id) }
    // If another thread called `refuse` meanwhile, that call found the function on this bus, or this check sees the
    // refusal.
    if function.environment.isRefused { remove(function) }
  }

  /// Removes a function, so that its address no longer answers. An access that found it earlier may still be in flight.
  public func remove(_ function: Function) {
    state.withLock { state in
      let number = function.requester.id.deviceFunction
      if state.functions[number] === function { state.functions[number] = nil }
    }
  }

  /// Returns the function that answers at an address. On a link, no function answers until function 0 is present:
  /// software detects the device by function 0, which is therefore added last.
  public func function(at deviceFunction: UInt8) -> Function? {
    state.withLock { isLink && $0.functions[0] == nil ? nil : $0.functions[deviceFunction] }
  }

  /// All functions, sorted by address.
  public var all: [Function] {
    state.withLock { $0.functions.sorted { $0.key < $1.key }.map(\.value) }
  }

  /// Whether no function answers.
  public var isEmpty: Bool { state.withLock { isLink ? $0.functions[0] == nil : $0.functions.isEmpty } }

  /// Returns the lowest device number, `first` or higher, that has no function.
  public func freeDevice(from first: UInt8) -> UInt8? {
    state.withLock { state in
      (0..<32).first { device in device >= first && !state.functions.keys.contains { $0 >> 3 == device } }
    }
  }
}

extension RequesterID {
  /// Returns the same device and function on another bus.
  func on(bus: UInt8) -> RequesterID { RequesterID(rawValue: UInt16(bus) << 8 | UInt16(deviceFunction)) }
}
