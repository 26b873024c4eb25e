import Glibc

/// Eventfds of this process, identified by the kernel's number for each (eventfd-id in fdinfo).
package enum Eventfd {
  package static func identity(of descriptor: Int32) -> String? {
    let file = Glibc.open("/proc/self/fdinfo/\(descriptor)", O_RDONLY)
    guard file >= 0 else { return nil }
    defer { Glibc.close(file) }
    var bytes = [UInt8](repeating: 0, count: 512)
    let count = Glibc.read(file, &bytes, bytes.count)
    let text = String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self)
    return text.split(separator: "\n").first { $0.hasPrefix("eventfd-id:") }
      .map { $0.dropFirst(11).filter { !$0.isWhitespace } }
  }

  package static var allOpen: [(descriptor: Int32, identity: String)] {
    guard let folder = opendir("/proc/self/fd") else { return [] }
    defer { closedir(folder) }
    var found: [(descriptor: Int32, identity: String)] = []
    while let entry = readdir(folder) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      if let descriptor = Int32(name), let identity = identity(of: descriptor) {
        found.append((descriptor, identity))
      }
    }
    return found
  }
}
