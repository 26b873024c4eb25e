import Hardware
import Synchronization

/// Bus 0 of the root complex: functions by their addresses.
public final class Bus: Sendable {
  /// An address that has a function already.
  public struct AddressInUse: Error, Hashable, Sendable {
    public let address: RequesterID
  }

  public let number: UInt8
  private let functions = Mutex<[UInt8: Function]>([:])

  public init(number: UInt8) { self.number = number }

  public func add(_ function: Function) throws(AddressInUse) {
    let address = function.requester.id
    let added = functions.withLock { functions in
      guard functions[address.deviceFunction] == nil else { return false }
      functions[address.deviceFunction] = function
      return true
    }
    guard added else { throw AddressInUse(address: address) }
  }

  /// Takes a function off its address, which answers no more then. An access that found it before may be in flight.
  public func remove(_ function: Function) {
    functions.withLock { functions in
      let number = function.requester.id.deviceFunction
      if functions[number] === function { functions[number] = nil }
    }
  }

  public func function(at deviceFunction: UInt8) -> Function? {
    functions.withLock { $0[deviceFunction] }
  }

  /// In order of address.
  public var all: [Function] {
    functions.withLock { $0.sorted { $0.key < $1.key }.map(\.value) }
  }

  /// The lowest device number without a function, from `first` on.
  public func freeDevice(from first: UInt8) -> UInt8? {
    functions.withLock { functions in
      (0..<32).first { device in device >= first && !functions.keys.contains { $0 >> 3 == device } }
    }
  }
}
