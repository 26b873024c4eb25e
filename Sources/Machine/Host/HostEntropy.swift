import Devices
import Glibc
import Hardware
import Linux

/// virtio-rng over getrandom(2).
final class HostEntropy: Devices.EntropySource {
  private let source: RandomSource

  init(memory: GuestMemory) { source = RandomSource(memory: memory) }

  func fill(_ segments: [PhysicalSegment]) throws(EntropyError) {
    for segment in segments {
      guard source.fill(segment.address, count: segment.count) else { throw EntropyError() }
    }
  }
}

/// virtio-rng over a file, such as /dev/urandom or a hardware generator's device.
final class FileEntropy: Devices.EntropySource {
  private let file: FileDescriptor
  private let memory: GuestMemory

  init(opening path: String, memory: GuestMemory) throws(SystemError) {
    file = try FileDescriptor(opening: path, O_RDONLY)
    self.memory = memory
  }

  func fill(_ segments: [PhysicalSegment]) throws(EntropyError) {
    for segment in segments {
      var done = 0
      while done < segment.count {
        // A file that ends, or has nothing now, is no source of randomness.
        guard let bytes = try? file.read(count: segment.count - done), !bytes.isEmpty,
          memory.write(bytes, to: segment.address &+ UInt64(done))
        else { throw EntropyError() }
        done += bytes.count
      }
    }
  }
}
