import Glibc

/// Names in a folder, and where links go: what sysfs is read by.
public enum Folder {
  /// In alphabetical order, without `.` and `..`.
  public static func names(in path: String) throws(SystemError) -> [String] {
    // SAFETY: the path lives for the duration of the call.
    guard let folder = unsafe path.withCString({ unsafe opendir($0) }) else {
      throw SystemError("opendir", path, code: errno)
    }
    defer { unsafe closedir(folder) }
    var names: [String] = []
    // SAFETY: an entry is libc's and stays until the next call; its name ends with a zero.
    while let entry = unsafe readdir(folder) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) { pointer in
        unsafe pointer.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  /// What a symbolic link says, as it says it.
  public static func link(_ path: String) throws(SystemError) -> String {
    var bytes = [UInt8](repeating: 0, count: Int(PATH_MAX))
    // SAFETY: the buffer is as long as is said, and the path lives for the duration of the call.
    let count = unsafe path.withCString { path in
      unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe readlink(path, buffer.bindMemory(to: CChar.self).baseAddress!, buffer.count)
      }
    }
    guard count >= 0 else { throw SystemError("readlink", path, code: errno) }
    return String(decoding: bytes[..<count], as: UTF8.self)
  }

  /// A small text file, without the white space around it.
  /// - Parameter limit: in bytes; what is beyond is left out, in steps of 4 KiB.
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
