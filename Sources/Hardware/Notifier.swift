// Events by which a device's queue and its server notify each other, when the server is not a worker of this process.

/// An eventfd of the host. The guest's side only passes it on: to the kernel, or to another program.
public struct Notifier: Sendable {
  /// The number of the descriptor. It stays open as long as this value, or a copy of it, exists.
  public let descriptor: Int32
  private let owner: any AnyObject & Sendable

  /// - Parameter owner: keeps the descriptor open.
  public init(descriptor: Int32, owner: any AnyObject & Sendable) {
    self.descriptor = descriptor
    self.owner = owner
  }
}

/// The notifiers of a queue that another server than its worker serves.
public struct QueueNotifiers: Sendable {
  /// Signalled when the guest notifies the queue.
  public let kick: Notifier
  /// The server signals it to run the worker's handler.
  public let call: Notifier

  public init(kick: Notifier, call: Notifier) {
    self.kick = kick
    self.call = call
  }
}
