import CLinux
import Glibc

/// A permission that a user of an image needs. The raw value is the bit number of QEMU's permission (BLK_PERM_*).
public enum ImagePermission: Int64, Hashable, Sendable {
  case consistentRead = 0
  case write = 1

  /// QEMU's name.
  public var name: String {
    switch self {
    case .consistentRead: "consistent read"
    case .write: "write"
    }
  }
}

/// The reason why an image cannot be locked.
public enum ImageLockError: Error, Hashable, Sendable {
  /// This process needs the permission, but another user of the image does not share it.
  case notGranted(ImagePermission)
  /// Another user of the image has the permission, but this process does not share it.
  case notShared(ImagePermission)
  /// The image's file system or the kernel does not support locks of open files.
  case unavailable(SystemError)
  case system(SystemError)
}

/// The locks by which users of an image exclude each other. The layout is QEMU's (block/file-posix.c), so that Nestling
/// and QEMU exclude each other, too. A shared lock on byte 100 + n means that permission n is in use. A shared lock on
/// byte 200 + n means that the lock's holder does not share permission n.
///
/// The locks belong to the open file (F_OFD_SETLK of fcntl(2)). The same image opened twice in one process is a
/// conflict, and the kernel drops the locks when the file is closed, even by a crash.
extension ScatteredFile {
  private enum Base {
    static let used: Int64 = 100
    static let notShared: Int64 = 200
  }

  /// Locks the image for as long as it is open. As with QEMU's disks without `share-rw=on`, readers and writers exclude
  /// other writers.
  public func lock() throws(ImageLockError) {
    let used: [ImagePermission] = isReadOnly ? [.consistentRead] : [.consistentRead, .write]
    let notShared: [ImagePermission] = [.write]
    for permission in used { try lock(byte: Base.used + permission.rawValue) }
    for permission in notShared { try lock(byte: Base.notShared + permission.rawValue) }
    // Check after taking the locks: if two users start at once, at least one of them sees the other.
    for permission in used where try isLocked(byte: Base.notShared + permission.rawValue) {
      throw .notGranted(permission)
    }
    for permission in notShared where try isLocked(byte: Base.used + permission.rawValue) {
      throw .notShared(permission)
    }
  }

  private func lock(byte: Int64) throws(ImageLockError) {
    _ = try answered(nestling_lock_byte(file.rawValue, byte))
  }

  /// Returns whether another open file has a lock on the byte.
  private func isLocked(byte: Int64) throws(ImageLockError) -> Bool {
    try answered(nestling_byte_is_locked(file.rawValue, byte)) > 0
  }

  private func answered(_ answer: Int32) throws(ImageLockError) -> Int32 {
    do {
      return try checked(answer, "lock", path)
    } catch {
      switch error.code {
      case EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP: throw .unavailable(error)
      default: throw .system(error)
      }
    }
  }
}
