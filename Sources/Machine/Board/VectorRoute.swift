import Hardware

/// The route of an MSI or MSI-X vector.
final class VectorRoute: MessageRoute, EventRoute, @unchecked Sendable {
  /// The accelerator's vector, made on first use because most vectors are never used. Protected by the route's lock.
  private var vector: (any MessageVector)?
  /// Whether others, such as the kernel's VFIO, signal the vector, even while there is no message. Protected by the
  /// route's lock.
  private var isSignalledByOthers = false

  override func install(_ resolved: InterruptMessage?) {
    guard let resolved else {
      if isSignalledByOthers { vector?.hold() }
      return
    }
    madeVector.set(resolved)
  }

  private var madeVector: any MessageVector {
    if let vector { return vector }
    let made = delivery.localInterrupts.makeVector()
    vector = made
    return made
  }

  func event() -> Int32? {
    state.withLock { _ in
      isSignalledByOthers = true
      return madeVector.event
    }
  }

  var hasPendingSignal: Bool { state.withLock { _ in vector?.hasPendingSignal == true } }

  override func send(_ resolved: InterruptMessage) { vector?.signal() }
}
