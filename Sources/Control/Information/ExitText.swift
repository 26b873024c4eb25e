import Machine

/// `info exits`: one line for each CPU.
enum ExitText {
  /// - Parameter summaries: One per CPU; empty while exits are not measured.
  static func text(_ summaries: [ExitSummary]) -> String {
    if summaries.isEmpty { return "exit times: off (exit_times on starts measuring)\n" }
    return summaries.enumerated().map { index, summary in
      let mean = summary.count == 0 ? 0 : summary.total / summary.count
      return "CPU #\(index): exits=\(summary.count) mean_ns=\(mean) longest_ns=\(summary.longest.time) "
        + "(\(summary.longest.cause)) undisturbed_ns=\(summary.longestUndisturbed.time) "
        + "(\(summary.longestUndisturbed.cause))\n"
    }.joined()
  }
}
