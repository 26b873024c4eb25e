import Linux

/// The guest's end of a character device: a serial port, a monitor, the qtest server.
///
/// The device's reader calls it, one call after the other: `connected`, any number of `receive` and `focusChanged`,
/// `disconnected`, and again. A slow frontend delays only this device. `Chardev.write` may be called from within these
/// calls and from any other thread.
public protocol ChardevFrontend: AnyObject, Sendable {
  /// A peer is connected. For a socket this is each client; other devices have a peer from the start.
  func connected()

  /// Receives bytes from the peer.
  /// - Returns: how many of them the frontend took. The device offers the rest again after `Chardev.roomChanged`.
  func receive(_ bytes: ArraySlice<UInt8>) -> Int

  /// Receives open files that came with the next bytes. A file closes unless the frontend keeps it.
  func receive(_ files: [PassedDescriptor])

  /// The device accepts output again after it has refused some, or the peer is no longer behind. Called from any
  /// thread, at any time.
  func outputRoom()

  /// The peer has disconnected. Output that is not written yet is dropped.
  func disconnected()

  /// The focus of a multiplexed device has changed: whether input goes to this frontend from now on. Also called after
  /// `connected`, for the frontends without the focus.
  func focusChanged(_ focused: Bool)
}

extension ChardevFrontend {
  public func receive(_ files: [PassedDescriptor]) {}
  public func outputRoom() {}
  public func focusChanged(_ focused: Bool) {}
}
