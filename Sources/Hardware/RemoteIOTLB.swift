// A datapath outside of this process, such as the kernel's vhost-net or a vhost-user back end, that keeps translations
// of a function's DMA addresses and asks for those that it lacks (vhost's IOTLB messages). `RemoteDMAPort` is the root
// complex as the datapath sees it; `RemoteIOTLB` is the datapath as the root complex sees it.

/// A range of DMA addresses.
public struct DMARange: Hashable, Sendable {
  public var first: UInt64
  /// Inclusive, because the range may end at the top of the address space.
  public var last: UInt64

  public init(first: UInt64, last: UInt64) {
    self.first = first
    self.last = last
  }

  public static let all = DMARange(first: 0, last: .max)

  public func contains(_ address: UInt64) -> Bool { first <= address && address <= last }
  public func overlaps(_ other: DMARange) -> Bool { first <= other.last && other.first <= last }
}

/// The translation of a range of DMA addresses to contiguous guest physical addresses.
public struct RemoteMapping: Hashable, Sendable {
  /// The DMA addresses: whole pages of 4 KiB. The range may be larger than RAM, for example without translation, so the
  /// owner of the remote clips it to the RAM region of the missed address.
  public var range: DMARange
  /// The guest physical address of `range.first`.
  public var physicalAddress: UInt64
  public var isReadable: Bool
  public var isWritable: Bool

  public init(range: DMARange, physicalAddress: UInt64, isReadable: Bool, isWritable: Bool) {
    self.range = range
    self.physicalAddress = physicalAddress
    self.isReadable = isReadable
    self.isWritable = isWritable
  }
}

/// A remote's reaction to an invalidation.
public enum RemoteInvalidation: Hashable, Sendable {
  /// The remote no longer uses the mappings.
  case done
  /// The remote answers later: `RemoteDMAPort.complete`.
  case later
}

/// The cache of translations of one remote datapath.
public protocol RemoteIOTLB: AnyObject, Sendable {
  /// Removes every mapping that overlaps one of the ranges. When the remote has completed this, it uses none of these
  /// mappings any more, and no access that used one is in progress.
  ///
  /// The guest's wait descriptor completes after this. The calling thread is that of the vCPU that invalidates, or any
  /// thread that resumes the unit's invalidation queue, and it holds the queue's lock. So the implementation must not
  /// block (one bounded system call is allowed), and must take no lock that its owner holds during a call of the port.
  /// Of the port it may call only `complete`. If the remote is unreachable, the implementation cuts it off and returns
  /// `.done`.
  /// - Parameters:
  ///   - ranges: 1 to 16 ranges of whole pages.
  ///   - number: identifies the call in `RemoteDMAPort.complete`, which may come before the return. The next call comes
  ///     after the completion of this one.
  func invalidate(_ ranges: [DMARange], number: UInt64) -> RemoteInvalidation

  /// Cuts off a remote that has not completed an invalidation in time. On return it reaches no memory through its
  /// mappings, as far as the host can enforce that, and the guest's wait descriptor completes. A process that has
  /// mapped the guest's shared RAM keeps that access until it ends.
  ///
  /// The port is already disconnected. The calling thread is the timer's and holds no lock; on a root complex without a
  /// timer it is that of `invalidate`.
  func cutOff()

  /// Whether the remote reports a miss when it writes to a page that it holds as read-only. The kernel's vhost does
  /// not: its ring stops. If false, a read miss may therefore set the dirty bit of a writable page, as an ATS
  /// translation request without NW does (VT-d 3.6.2).
  var asksAgainToWrite: Bool { get }
}

/// The requests of a remote datapath, which acts for one function. The requests carry no PASID.
public protocol RemoteDMAPort: AnyObject, Sendable {
  /// The misses in flight, from before their translation until the mapping is installed.
  var inFlight: RequestsInFlight { get }

  /// False after `disconnect`, and after the remote was cut off. Then the port refuses all misses.
  var isConnected: Bool { get }

  /// Answers a miss.
  /// - Parameters:
  ///   - access: the rights that the remote needs.
  ///   - recordsFault: whether a refusal is a fault of the function's request. False for a miss that may be out of date:
  ///     then a refusal changes no register.
  ///   - install: gives the mapping to the remote, before the remote can receive any later invalidation. An
  ///     invalidation first removes the translation and waits for misses in flight, and then goes to the remote. So no
  ///     mapping is installed after its invalidation. `install` must not block and must not call the port.
  /// - Throws: `.disabled` and `.translation` as for a request of the function; `.notMemory` for the interrupt address
  ///   range, because a remote makes no interrupt requests.
  func translate(
    _ address: UInt64, for access: DMAAccess, recordsFault: Bool, _ install: (RemoteMapping) -> Void
  ) throws(DMAError)

  /// Completes a call of `RemoteIOTLB.invalidate`. The port ignores an unknown number. The call may resume the
  /// invalidation queue, so the caller holds no request in flight and no lock that an invalidation takes.
  func complete(_ number: UInt64)

  /// Takes all mappings from the remote, because the function's right to make requests has changed: for example, Bus
  /// Master Enable is now clear. The remote does not check that for the mappings that it holds. The caller holds no
  /// lock that an invalidation takes.
  func forgetAll()

  /// Records that no RAM is at the physical address of a mapping.
  func noteUnclaimed()

  /// Ends the connection, after the remote has stopped. Incomplete invalidations count as complete. A call of
  /// `RemoteIOTLB.invalidate` that has begun may still run. The caller holds no lock that an invalidation takes.
  func disconnect()
}

extension DMARemapper {
  /// Without an IOMMU, the DMA addresses of a remote are guest physical, so it needs no translations.
  public func connect(_ remote: any RemoteIOTLB, for requester: Requester) -> (any RemoteDMAPort)? { nil }
}
