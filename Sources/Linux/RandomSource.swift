import CLinux

/// The kernel's random numbers, straight into a guest's memory.
public final class RandomSource: Sendable {
  private let memory: GuestMemory

  public init(memory: GuestMemory) { self.memory = memory }

  /// - Returns: false where the range is not RAM.
  public func fill(_ address: UInt64, count: Int) -> Bool {
    guard count >= 0, let base = unsafe memory.pointer(address, UInt64(count)) else { return false }
    var done = 0
    while done < count {
      // SAFETY: `pointer` has checked the range; getrandom(2) is told what remains of it.
      let answer = unsafe nestling_getrandom(base + done, count - done)
      if answer <= 0 { return false }
      done += answer
    }
    return true
  }
}
