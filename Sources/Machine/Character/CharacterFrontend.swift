/// Who is at the guest's end of a character device: a serial port, a monitor, the qtest server.
///
/// The device calls it on a thread of its own, one call after the other: `connected`, any number of `receive` and
/// `focusChanged`, `disconnected`, and again. What takes long there holds up this device alone.
/// `CharacterDevice.write` may be called from within, and from any other thread.
public protocol CharacterFrontend: AnyObject, Sendable {
  /// How many bytes it takes now. Who answers less than there is to come calls `CharacterDevice.roomChanged` when it
  /// takes more.
  var receiveRoom: Int { get }

  /// Somebody is at the host's end: a client of a socket; of other devices there is always somebody, from the start.
  func connected()

  /// Bytes from there, never more than `receiveRoom`.
  func receive(_ bytes: ArraySlice<UInt8>)

  /// Output that the device has refused would be taken now. From any thread, at any time.
  func outputRoom()

  /// Who was there has gone. What is not written yet is dropped.
  func disconnected()

  /// Of a multiplexed device: whether what is typed comes here from now on. Told when it changes, and after
  /// `connected` to those who have not got it.
  func focusChanged(_ focused: Bool)
}

extension CharacterFrontend {
  public var receiveRoom: Int { .max }
  public func outputRoom() {}
  public func focusChanged(_ focused: Bool) {}
}
