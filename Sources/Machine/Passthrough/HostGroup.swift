import Hardware
import Linux
import Synchronization
import VFIO

/// The functions of one IOMMU group of the host's that the machine has.
///
/// The host's IOMMU does not tell the functions of a group apart, so iommufd keeps one page table for all of them
/// (drivers/iommu/iommufd/device.c, `iommufd_group`): attaching one function elsewhere moves the others, and a function
/// that is detached goes on by the table of those that are not. The guest may not know that they belong together. So:
///
/// - Behind a unit that offers first stage, a function is the machine's only one of its group: the guest gives each
///   function a table of its own.
/// - Otherwise all of them go by the guest's memory, or none does: while one is blocked, all are detached.
/// - All of them are on one iommufd object, as a group has one owner.
///
/// Lock order: after the bindings of the functions' units; `state` is held across the host's calls; then that of a
/// `HostBoundDevice`, and the device's attachment.
final class HostGroup: Sendable {
  fileprivate struct Entry {
    let name: String
    let iommufd: Identifier?
    /// Whether its unit offers first stage.
    let nests: Bool
    weak var device: HostBoundDevice?
    /// Where its unit wants it attached; nil: blocked.
    var wanted: (any AttachmentTarget)?
  }
  fileprivate struct State {
    var entries: [UInt64: Entry] = [:]
    var next: UInt64 = 0
  }

  private let state = Mutex(State())

  /// A function's place in its group, from before it is bound until it is removed.
  final class Member: Sendable {
    private let group: HostGroup
    private let key: UInt64

    fileprivate init(of group: HostGroup, _ key: UInt64) {
      self.group = group
      self.key = key
    }

    deinit { leave() }

    /// Gives the place up, when the function's requests have ended and it is detached.
    func leave() { group.leave(key) }

    /// Notes where a function is attached already.
    func note(_ device: HostBoundDevice, attachedTo target: any AttachmentTarget) {
      group.state.withLock { state in
        state.entries[key]?.device = device
        state.entries[key]?.wanted = target
      }
    }

    /// Attaches a function, unless another one of the group is blocked.
    /// - Parameter target: nil blocks it, and the others with it.
    /// - Throws: what the host says, where it refused one of them.
    func attach(_ device: HostBoundDevice, to target: (any AttachmentTarget)?) throws(SystemError) {
      let (held, problem) = group.state.withLock { state in
        state.entries[key]?.device = device
        state.entries[key]?.wanted = target
        return HostGroup.settle(state)
      }
      // Let go with the lock released: the end of the last one is calls of its own.
      _ = held
      if let problem { throw problem }
    }
  }

  /// A group of which the machine has one function, and sysfs tells nothing.
  static func alone() -> Member {
    let group = HostGroup()
    return Member(of: group, group.state.withLock { $0.add(Entry(name: "", iommufd: nil, nests: false)) })
  }

  fileprivate func join(_ entry: Entry) throws(PassthroughError.Problem) -> Member {
    Member(
      of: self,
      try state.withLock { (state) throws(PassthroughError.Problem) in
        // The kernel refuses to have the same function twice.
        for other in state.entries.values where other.name != entry.name {
          if other.nests || entry.nests { throw .sharedGroup(sibling: other.name) }
          if other.iommufd != entry.iommufd {
            throw .groupOfOtherObject(sibling: other.name, object: other.iommufd?.text ?? "")
          }
        }
        return state.add(entry)
      })
  }

  fileprivate func leave(_ key: UInt64) {
    let (held, problem) = state.withLock { state -> ([HostBoundDevice], SystemError?) in
      let gone = state.entries.removeValue(forKey: key)
      // Those that it kept blocked go on.
      guard gone != nil, gone?.wanted == nil else { return ([], nil) }
      return Self.settle(state)
    }
    if let problem {
      for device in held { device.notice(.refused(problem)) }
    }
  }

  /// Attaches all of them, or detaches all.
  /// - Returns: all of them, and what the host refused.
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

/// The groups of which the machine has functions, by their names in sysfs.
///
/// Lock order: its lock, then a group's.
final class HostGroups: Sendable {
  private struct Weak {
    weak var group: HostGroup?
  }
  private let groups = Mutex<[String: Weak]>([:])

  /// - Parameters:
  ///   - group: nil where sysfs does not show one.
  ///   - function: as messages name it.
  ///   - iommufd: the object that it is to be bound to.
  ///   - nests: whether its unit offers first stage.
  /// - Throws: why it cannot be in the machine beside another one of its group.
  func join(
    _ group: String?, as function: String, iommufd: Identifier?, nests: Bool
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
