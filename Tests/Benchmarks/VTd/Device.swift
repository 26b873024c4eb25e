import Hardware

/// Translates each address in turn, `rounds` times, as a device's thread does.
/// - Returns: the sum of the results.
@inline(never)
func translateAll(_ port: any DMAPort, _ addresses: [UInt64], rounds: Int) throws(DMAError) -> UInt64 {
  var sum: UInt64 = 0
  for _ in 0..<rounds {
    for address in addresses {
      let segment = try port.translate(address, count: 8, for: .read)
      sum &+= segment.address &+ UInt64(truncatingIfNeeded: segment.count)
    }
  }
  return sum
}
