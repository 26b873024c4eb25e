/// Finds the known names nearest to a mistyped one.
enum NearestNames {
  /// - Returns: At most three of the candidates, the nearest first.
  static func to(_ name: String, among candidates: [String]) -> [String] {
    // A longer name is not a typing error, and the time for a distance grows with the product of the lengths.
    let wanted = Array(name.utf8.prefix(64))
    var seen = Set<String>()
    let ranked = candidates.filter { seen.insert($0).inserted }.map { candidate in
      let other = Array(candidate.utf8.prefix(64))
      // A candidate that begins with the typed name, or the reverse, is nearer than its missing letters suggest.
      let startsAlike =
        wanted.count > 1 && other.starts(with: wanted) || other.count > 2 && wanted.starts(with: other)
      let distance = distance(wanted, other)
      return (
        name: candidate, rank: startsAlike ? min(1, distance) : distance, distance: distance,
        length: max(wanted.count, other.count)
      )
    }.sorted { ($0.rank, $0.distance, $0.name) < ($1.rank, $1.distance, $1.name) }
    let best = ranked.first?.rank ?? 0
    // If one name differs by one typing error, leave out names that differ more.
    let near = ranked.filter { $0.rank <= max(2, $0.length / 3) && $0.rank <= max(best, $0.length / 4) }
    // If no name is near, show some names that exist.
    return (near.isEmpty ? ranked : near).prefix(3).map(\.name)
  }

  /// Counts insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
  static func distance(_ a: [UInt8], _ b: [UInt8]) -> Int {
    var beforePrevious = [Int](repeating: 0, count: b.count + 1)
    var previous = Array(0...b.count)
    for i in 0..<a.count {
      var current = [i + 1]
      for j in 0..<b.count {
        var best = min(previous[j + 1] + 1, current[j] + 1, previous[j] + (a[i] == b[j] ? 0 : 1))
        if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] { best = min(best, beforePrevious[j - 1] + 1) }
        current.append(best)
      }
      beforePrevious = previous
      previous = current
    }
    return previous[b.count]
  }
}
