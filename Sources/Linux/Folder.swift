import Glibc

/// Reads directory entries, symbolic links and small text files, as in sysfs.
public enum Folder {
  /// Returns the names in a directory in alphabetical order, without `.` and `..`.
  public static func names(in path: String) throws(SystemError) -> [String] {
    // SAFETY: the path lives for the duration of the call.
    guard let folder = unsafe path.withCString({ unsafe opendir($0) }) else {
      throw SystemError("opendir", path, code: errno)
    }
    defer { unsafe closedir(folder) }
    var names: [String] = []
    // SAFETY: libc owns the entry until the next call; its name ends with a zero.
    while let entry = unsafe readdir(folder) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  /// Returns the target of a symbolic link, unresolved.
  public static func link(_ path: String) throws(SystemError) -> String {
    var bytes = [UInt8](repeating: 0, count: Int(PATH_MAX))
    // SAFETY: the call gets the buffer's size, and the path lives until it returns.
    let count = unsafe path.withCString { path in
      unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe readlink(path, buffer.bindMemory(to: CChar.self).baseAddress!, buffer.count)
      }
    }
    guard count >= 0 else { throw SystemError("readlink", path, code: errno) }
    return String(decoding: bytes[..<count], as: UTF8.self)
  }

  /// Returns the contents of a small text file, without leading and trailing white space.
  /// - Parameter limit: in bytes, rounded up to 4 KiB; the rest of the file is not read.
  public static func text(of path: String, limit: Int = 1 << 16) throws(SystemError) -> String {
    let file = try FileDescriptor(opening: path, O_RDONLY)
    var bytes: [UInt8] = []
    while bytes.count < limit, let more = try file.read(count: 4096), !more.isEmpty { bytes += more }
    return String(decoding: bytes, as: UTF8.self).trimmingWhiteSpace()
  }
}

extension String {
  fileprivate func trimmingWhiteSpace() -> String {
    guard let first = firstIndex(where: { !$0.isWhitespace }), let last = lastIndex(where: { !$0.isWhitespace }) else {
      return ""
    }
    return String(self[first...last])
  }
}
