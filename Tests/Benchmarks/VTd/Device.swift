import Hardware

/// What a device's thread does: translates each address in turn, `rounds` times over.
/// - Returns: the sum of what came out.
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
