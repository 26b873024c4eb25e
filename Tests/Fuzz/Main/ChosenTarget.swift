import FuzzTargets
import Glibc

/// The target that `--target=NAME` names. libFuzzer itself ignores arguments with two dashes and passes them to the
/// processes that it starts.
enum ChosenTarget {
  static let target: FuzzTarget = {
    let prefix = "--target="
    let name = CommandLine.arguments.first { $0.hasPrefix(prefix) }?.dropFirst(prefix.count)
    guard let target = FuzzTarget.all.first(where: { $0.name == name ?? "" }) else {
      say("--target= must name one of \(FuzzTarget.all.map(\.name).joined(separator: ", "))")
      exit(2)
    }
    return target
  }()

  static func say(_ text: String) {
    let line = Array("nestling-fuzz: \(text)\n".utf8)
    _ = write(STDERR_FILENO, line, line.count)
  }
}
