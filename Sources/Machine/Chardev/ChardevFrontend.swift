import Linux

/// The guest's end of a character device: a serial port, a monitor, the qtest server.
///
/// The device's input makes one call after the other, on its loop's thread: `connected`, any number of `receive` and
/// `focusChanged`, `disconnected`, and then `connected` again. A frontend may call `Chardev.write` within these calls
/// and on any other thread.
public protocol ChardevFrontend: AnyObject, Sendable {
  /// Whether `receive` may wait, for the machine or for a file of the host. If so, the device has a loop of its own,
  /// and the frontend delays only this device.
  var mayBlock: Bool { get }

  /// Reports that a peer is connected: each client of a socket; other devices have a peer from the start.
  func connected()

  /// Receives bytes from the peer.
  /// - Returns: the number of bytes that the frontend took. The device offers the rest again after
  ///   `Chardev.roomChanged`.
  func receive(_ bytes: ArraySlice<UInt8>) -> Int

  /// Receives open files that came with the next bytes. A file closes unless the frontend keeps it.
  func receive(_ files: [PassedDescriptor])

  /// Reports that the device accepts output again after it has refused some, or that the peer is no longer behind.
  /// Called on any thread, at any time. Must not block.
  func outputRoom()

  /// Reports that the peer has disconnected. Output that is not written yet is dropped.
  func disconnected()

  /// Reports whether this frontend of a multiplexed device has the focus, and so gets the input from now on. Also
  /// called after `connected`, for the frontends without the focus.
  func focusChanged(_ focused: Bool)
}

extension ChardevFrontend {
  public func receive(_ files: [PassedDescriptor]) {}
  public func outputRoom() {}
  public func focusChanged(_ focused: Bool) {}
}
