import Glibc
import Linux
import Synchronization

/// Sets of open files that monitors' clients have passed (`add-fd`). An open of `/dev/fdset/N` duplicates the file in
/// set N that was opened with the same access mode (monitor/fds.c). All monitors of a machine share the sets. A set is
/// removed when no duplicate of its files is open, and it is empty or no client is connected.
///
/// Lock order: code that holds its lock takes no other lock, and closes files only after releasing it.
public final class DescriptorSets: Sendable {
  public struct Member: Sendable {
    public let file: PassedDescriptor
    /// The client's own text, which `query-fdsets` returns.
    public let note: String?
  }

  public struct DescriptorSet: Sendable {
    public let id: Int64
    /// The members, the latest first.
    public fileprivate(set) var members: [Member] = []
    fileprivate var duplicateCount = 0
  }

  public enum Problem: Error, Hashable, Sendable {
    case negativeID
    /// The set does not exist, or has no such member.
    case notFound(set: Int64, member: Int64?)
    /// The text after `/dev/fdset/` is not a number.
    case notNumber(path: String)
    /// There is no such set (ENOENT), it has no file with this access mode (EACCES), or the kernel could not duplicate
    /// the file.
    case notOpened(path: String, readOnly: Bool, SystemError)
  }

  private struct State {
    /// The sets, in the order of their numbers.
    var sets: [DescriptorSet] = []
    var clientCount = 0

    func index(_ id: Int64) -> Int? { sets.firstIndex { $0.id == id } }
  }

  public static let folder = "/dev/fdset/"

  private let state = Mutex(State())

  public init() {}

  /// All sets, in the order of their numbers.
  public var all: [DescriptorSet] { state.withLock { $0.sets } }

  /// Adds a file to a set, which is created if it does not exist.
  /// - Parameter id: nil for the lowest free number.
  /// - Returns: the set's number.
  public func add(_ file: PassedDescriptor, to id: Int64?, note: String?) throws(Problem) -> Int64 {
    if let id, id < 0 { throw .negativeID }
    return state.withLock { state in
      let taken = Set(state.sets.map(\.id))
      let id = id ?? (0...).first { !taken.contains($0) } ?? 0
      if state.index(id) == nil {
        let place = state.sets.firstIndex { $0.id > id } ?? state.sets.endIndex
        state.sets.insert(DescriptorSet(id: id), at: place)
      }
      if let index = state.index(id) { state.sets[index].members.insert(Member(file: file, note: note), at: 0) }
      return id
    }
  }

  /// Closes one file of a set, or all of them. Duplicates stay open.
  public func remove(_ id: Int64, member: Int64? = nil) throws(Problem) {
    let gone = state.withLock { state -> [Member]? in
      guard let index = state.index(id) else { return nil }
      let gone = state.sets[index].members.filter { member == nil || Int64($0.file.rawValue) == member }
      if member != nil, gone.isEmpty { return nil }
      state.sets[index].members.removeAll { member == nil || Int64($0.file.rawValue) == member }
      if state.sets[index].members.isEmpty, state.sets[index].duplicateCount == 0 { state.sets.remove(at: index) }
      return gone
    }
    guard let gone else { throw .notFound(set: id, member: member) }
    _ = gone
  }

  /// Duplicates a file of a set: the latest one with exactly this access mode.
  /// - Parameters:
  ///   - path: `/dev/fdset/` and the set's number.
  ///   - readOnly: whether the access mode is reading; otherwise it is reading and writing.
  /// - Returns: nil for a path that does not begin with `/dev/fdset/`.
  public func open(_ path: String, readOnly: Bool) throws(Problem) -> PassedDescriptor? {
    guard path.hasPrefix(Self.folder) else { return nil }
    guard let id = Int64(path.dropFirst(Self.folder.count)), id >= 0 else { throw .notNumber(path: path) }
    do throws(SystemError) {
      let file = try state.withLock { (state) throws(SystemError) in
        guard let index = state.index(id) else { throw SystemError("dup", path, code: ENOENT) }
        let accessMode = readOnly ? O_RDONLY : O_RDWR
        let member = state.sets[index].members.first { (try? $0.file.accessMode) == accessMode }
        guard let member else { throw SystemError("dup", path, code: EACCES) }
        state.sets[index].duplicateCount += 1
        return member.file
      }
      do throws(SystemError) {
        return PassedDescriptor(try FileDescriptor(duplicating: file.rawValue)) { [self] in duplicateClosed(id) }
      } catch {
        duplicateClosed(id)
        throw error
      }
    } catch {
      throw .notOpened(path: path, readOnly: readOnly, error)
    }
  }

  private func duplicateClosed(_ id: Int64) {
    let gone = state.withLock { state -> [DescriptorSet] in
      if let index = state.index(id) { state.sets[index].duplicateCount -= 1 }
      return Self.prune(&state)
    }
    _ = gone
  }

  /// Counts a client that has connected to a monitor.
  public func clientConnected() { state.withLock { $0.clientCount += 1 } }

  public func clientDisconnected() {
    let gone = state.withLock { state in
      state.clientCount -= 1
      return Self.prune(&state)
    }
    _ = gone
  }

  /// Removes the sets that are no longer used.
  /// - Returns: these sets. The caller releases them, which closes their files, without the lock.
  private static func prune(_ state: inout State) -> [DescriptorSet] {
    let hasClient = state.clientCount > 0
    func isOver(_ set: DescriptorSet) -> Bool {
      set.duplicateCount == 0 && (!hasClient || set.members.isEmpty)
    }
    defer { state.sets.removeAll(where: isOver) }
    return state.sets.filter(isOver)
  }
}
