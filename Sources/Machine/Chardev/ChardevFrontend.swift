import Linux

/// Who is at the guest's end of a character device: a serial port, a monitor, the qtest server.
///
/// The device calls it on a thread of its own, one call after the other: `connected`, any number of `receive` and
/// `focusChanged`, `disconnected`, and again. What takes long there holds up this device alone.
/// `Chardev.write` may be called from within, and from any other thread.
public protocol ChardevFrontend: AnyObject, Sendable {
  /// Somebody is at the host's end: a client of a socket; of other devices there is always somebody, from the start.
  func connected()

  /// Bytes from there.
  /// - Returns: how many of them it has taken. The rest comes again once it has called `Chardev.roomChanged`.
  func receive(_ bytes: ArraySlice<UInt8>) -> Int

  /// Open files that came with the bytes that follow. A frontend that does not keep them closes them by that.
  func receive(_ files: [PassedDescriptor])

  /// Output that the device has refused would be taken now, or it is no longer behind. From any thread, at any time.
  func outputRoom()

  /// Who was there has gone. What is not written yet is dropped.
  func disconnected()

  /// Of a multiplexed device: whether what is typed comes here from now on. Told when it changes, and after
  /// `connected` to those who have not got it.
  func focusChanged(_ focused: Bool)
}

extension ChardevFrontend {
  public func receive(_ files: [PassedDescriptor]) {}
  public func outputRoom() {}
  public func focusChanged(_ focused: Bool) {}
}
