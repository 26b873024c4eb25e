import Devices
import Glibc
import Linux
import Synchronization

/// The open disks by their block nodes, and the change of a file's size under them (`block_resize`).
///
/// Lock order: `resizing` is held while the host changes a file, and only resizes wait for it; code that holds
/// `entries` takes no other lock.
final class OpenDisks: Sendable {
  private struct Entry {
    let node: String
    weak var backend: FileBackend?
    weak var disk: VirtioBlock?
  }

  /// `add` removes the entries of disks that are gone.
  private let entries = Mutex<[Entry]>([])
  private let resizing = Mutex<Void>(())

  func add(_ node: String, _ backend: FileBackend, _ disk: VirtioBlock) {
    entries.withLock { entries in
      entries.removeAll { $0.disk == nil }
      entries.append(Entry(node: node, backend: backend, disk: disk))
    }
  }

  private func over(_ nodes: [String]) -> [(backend: FileBackend, disk: VirtioBlock)] {
    entries.withLock { entries in
      entries.compactMap { entry in
        guard nodes.contains(entry.node), let backend = entry.backend, let disk = entry.disk else { return nil }
        return (backend, disk)
      }
    }
  }

  /// Changes the size of a node's file, and notifies the driver of each disk on the file by an interrupt. Waits for the
  /// host's file system and, if the file shrinks, for the writes in progress.
  /// - Parameter nodes: all nodes of the machine.
  func resize(_ node: BlockNode, to size: UInt64, among nodes: [BlockNode], memory: GuestMemory) throws(RequestError) {
    let base = node.underlying ?? node.id
    let family = nodes.filter { $0.id == base || $0.underlying == base }.map(\.id)
    try resizing.withLock { _ throws(RequestError) in
      let open = over(family)
      // An open disk has locked the file. If no disk is open, lock the file here against other programs.
      let file = try mapError(
        try open.isEmpty ? node.open(memory: memory) : node.openUnlocked(memory: memory), RequestError.failed)
      var reached: UInt64 = 0
      do throws(SystemError) {
        let earlier = try file.currentSize
        if try file.isRegular {
          if size < earlier { for (backend, _) in open { backend.setSize(size) } }
          do throws(SystemError) {
            try file.resize(to: size)
          } catch {
            for (backend, _) in open { backend.setSize(earlier) }
            throw error
          }
        } else if size > earlier {
          throw SystemError("resize", node.path, code: EINVAL, cause: .blockDevice)
        }
        reached = try file.currentSize
      } catch {
        throw .notResized(error)
      }
      for (backend, disk) in open {
        backend.setSize(reached)
        disk.capacityChanged()
      }
    }
  }
}
