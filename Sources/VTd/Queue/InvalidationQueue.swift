import Hardware

// The invalidation queue's registers and state (VT-d 6.5.2): its location, the head, and the errors that stop it.

/// The error that stopped the queue: IQEI of IQERCD (VT-d 11.4.9.9).
enum QueueError: UInt64, Error, Sendable {
  case invalidTail = 1
  case descriptorFetch = 2
  case invalidDescriptorType = 3
  case reservedField = 4
  case invalidDescriptorWidth = 5
  case misalignedTail = 6
  case invalidTableMode = 7
}

struct InvalidationQueue: Sendable {
  /// Guest physical address of the first descriptor.
  private(set) var base: UInt64 = 0
  /// Whether descriptors have 256 bits (IQA.DW).
  private(set) var isWide = false
  /// In bytes.
  private(set) var size = 0x1000
  /// Offset of the next descriptor to fetch, in bytes.
  var head = 0
  /// Changes with each new queue. A descriptor fetched from an older queue must not move the head.
  let generation: UInt64

  init(generation: UInt64 = 0) { self.generation = generation }

  /// - Parameter address: IQA.
  init(address: UInt64, generation: UInt64) {
    base = address & ~0xfff
    isWide = address[bit: 11]
    size = 0x1000 << Int(address[bits: 0...2])
    self.generation = generation
  }

  var descriptorSize: Int { isWide ? 32 : 16 }
  var capacity: Int { size / descriptorSize }
}

extension UnitRegisters {
  struct Fetch: Sendable {
    let address: UInt64
    let isWide: Bool
    let tableMode: TranslationMode.TableMode
    let generation: UInt64
  }

  /// Returns the location of the next descriptor, or nil when there is none to fetch.
  mutating func nextFetch(_ effects: inout Effects) -> Fetch? {
    guard globalStatus.contains(.queuedInvalidationEnable), faultStatus.isDisjoint(with: .queueStops) else {
      return nil
    }
    let tail = Int(file[doubleword: RegisterOffset.invalidationQueueTail])
    if tail >= queue.size {
      stopQueue(.invalidTail, generation: queue.generation, &effects)
      return nil
    }
    if tail % queue.descriptorSize != 0 {
      stopQueue(.misalignedTail, generation: queue.generation, &effects)
      return nil
    }
    guard queue.head != tail else { return nil }
    let mode = translationMode.tableMode
    if mode == .invalid {
      stopQueue(.invalidTableMode, generation: queue.generation, &effects)
      return nil
    }
    // Scalable mode requires 256-bit descriptors. A unit without scalable mode does not support them.
    if queue.isWide ? !capabilities.scalableMode : mode == .scalable {
      stopQueue(.invalidDescriptorWidth, generation: queue.generation, &effects)
      return nil
    }
    return Fetch(
      address: queue.base &+ UInt64(queue.head), isWide: queue.isWide, tableMode: mode, generation: queue.generation)
  }

  /// Moves the head past an executed descriptor.
  mutating func advanceQueue(generation: UInt64) {
    guard queue.generation == generation else { return }
    queue.head = (queue.head + queue.descriptorSize) % queue.size
    file[quadword: RegisterOffset.invalidationQueueHead] = UInt64(queue.head)
  }

  /// Stops the queue with the head at the invalid descriptor. The unit fetches again after software clears IQE.
  mutating func stopQueue(_ error: QueueError, generation: UInt64, _ effects: inout Effects) {
    guard queue.generation == generation else { return }
    file[quadword: RegisterOffset.invalidationQueueErrorRecord][bits: 0...3] = error.rawValue
    raise(.invalidationQueueError, &effects)
  }
}
