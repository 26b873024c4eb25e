import Hardware
import Linux
import Synchronization
import VFIO

/// The machine's functions of one IOMMU group of the host.
///
/// The host's IOMMU cannot distinguish the functions of a group, so iommufd keeps one page table for all of them
/// (drivers/iommu/iommufd/device.c, `iommufd_group`): attaching one function to another table moves the others, and a
/// detached function still uses the table of the attached ones. The guest may not know that the functions form a group.
/// Therefore:
///
/// - Behind a unit that offers first stage, a function must be the machine's only one of its group, because the guest
///   gives each function its own table.
/// - Otherwise all of them use the guest's memory, or none does: while one is blocked, all are detached.
/// - All of them are on one iommufd object, because a group has one owner.
///
/// Lock order: after the bindings of the functions' units; `state` is held across the host's calls; then that of a
/// `HostBoundDevice`, and the device's attachment.
final class HostGroup: Sendable {
  fileprivate struct Entry {
    let name: String
    /// The id of the iommufd object.
    let iommufd: String
    /// Whether the function's unit offers first stage.
    let nests: Bool
    weak var device: HostBoundDevice?
    /// The target that the unit requests; nil if the unit blocks the function.
    var wanted: (any AttachmentTarget)?
  }
  fileprivate struct State {
    var entries: [UInt64: Entry] = [:]
    var next: UInt64 = 0
  }

  private let state = Mutex(State())

  /// A function's membership in its group, from before it is bound until it is removed.
  final class Member: Sendable {
    private let group: HostGroup
    private let key: UInt64

    fileprivate init(of group: HostGroup, _ key: UInt64) {
      self.group = group
      self.key = key
    }

    deinit { leave() }

    /// Ends the membership. The function's requests have ended and the function is detached.
    func leave() { group.leave(key) }

    /// Records the target that a function is already attached to.
    func record(_ device: HostBoundDevice, attachedTo target: any AttachmentTarget) {
      group.state.withLock { state in
        state.entries[key]?.device = device
        state.entries[key]?.wanted = target
      }
    }

    /// Attaches a function, unless another function of the group is blocked.
    /// - Parameter target: nil blocks the function, and the others with it.
    /// - Throws: the host's error if the host refused a function of the group.
    func attach(_ device: HostBoundDevice, to target: (any AttachmentTarget)?) throws(SystemError) {
      let (held, problem) = group.state.withLock { state in
        state.entries[key]?.device = device
        state.entries[key]?.wanted = target
        return HostGroup.settle(state)
      }
      // Release the device without the lock: its end makes calls of the host.
      _ = held
      if let problem { throw problem }
    }
  }

  /// Returns the only member of a group that sysfs does not show.
  static func alone() -> Member {
    let group = HostGroup()
    return Member(of: group, group.state.withLock { $0.add(Entry(name: "", iommufd: "", nests: false)) })
  }

  fileprivate func join(_ entry: Entry) throws(PassthroughError.Problem) -> Member {
    Member(
      of: self,
      try state.withLock { (state) throws(PassthroughError.Problem) in
        // The kernel itself refuses the same function twice.
        for other in state.entries.values where other.name != entry.name {
          if other.nests || entry.nests { throw .sharedGroup(sibling: other.name) }
          if other.iommufd != entry.iommufd {
            throw .groupOfOtherObject(sibling: other.name, object: other.iommufd)
          }
        }
        return state.add(entry)
      })
  }

  fileprivate func leave(_ key: UInt64) {
    let (held, problem) = state.withLock { state -> ([HostBoundDevice], SystemError?) in
      let gone = state.entries.removeValue(forKey: key)
      // The function blocked the others: attach them again.
      guard gone != nil, gone?.wanted == nil else { return ([], nil) }
      return Self.settle(state)
    }
    if let problem {
      for device in held { device.notice(.refused(problem)) }
    }
  }

  /// Attaches all functions, or detaches all if one is blocked.
  /// - Returns: all functions, and the first error of the host.
  private static func settle(_ state: State) -> ([HostBoundDevice], SystemError?) {
    let present = state.entries.sorted { $0.key < $1.key }.compactMap { entry in
      entry.value.device.map { (device: $0, wanted: entry.value.wanted, name: entry.value.name) }
    }
    let blocked = present.first { $0.wanted == nil }
    var problem: SystemError?
    for (device, wanted, _) in present {
      do throws(SystemError) {
        try device.move(to: blocked == nil ? wanted : nil)
      } catch {
        problem = problem ?? error
      }
      if let blocked, wanted != nil { device.notice(.blockedWithSibling(blocked.name)) }
    }
    return (present.map(\.device), problem)
  }
}

extension HostGroup.State {
  fileprivate mutating func add(_ entry: HostGroup.Entry) -> UInt64 {
    next += 1
    entries[next] = entry
    return next
  }
}

/// The machine's groups, by their names in sysfs.
///
/// Lock order: its lock, then a group's.
final class HostGroups: Sendable {
  private struct Weak {
    weak var group: HostGroup?
  }
  private let groups = Mutex<[String: Weak]>([:])

  /// Adds a function to its group.
  /// - Parameters:
  ///   - group: nil if sysfs does not show one.
  ///   - function: the function's name in messages.
  ///   - iommufd: the id of the object that the function will be bound to.
  ///   - nests: whether its unit offers first stage.
  /// - Throws: the conflict with another function of the group.
  func join(
    _ group: String?, as function: String, iommufd: String, nests: Bool
  ) throws(PassthroughError.Problem) -> HostGroup.Member {
    let entry = HostGroup.Entry(name: function, iommufd: iommufd, nests: nests)
    guard let name = group else { return try HostGroup().join(entry) }
    return try groups.withLock { (groups) throws(PassthroughError.Problem) in
      groups = groups.filter { $0.value.group != nil }
      let group = groups[name]?.group ?? HostGroup()
      groups[name] = Weak(group: group)
      return try group.join(entry)
    }
  }
}
