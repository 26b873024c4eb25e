import CLinux

/// The kernel's random numbers: getrandom(2).
public enum RandomSource {
  /// Fills the start of an array with random bytes.
  /// - Parameter count: at most the array's size.
  /// - Returns: the number of random bytes: `count`, except on a host whose random source is not ready.
  public static func fill(_ bytes: inout [UInt8], count: Int) -> Int {
    let count = min(count, bytes.count)
    var done = 0
    while done < count {
      // SAFETY: the range lies within the array.
      let answer = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe nestling_getrandom(buffer.baseAddress! + done, count - done)
      }
      if answer <= 0 { break }
      done += answer
    }
    return done
  }
}
