// nestling-fuzz --target=NAME [libFuzzer's options] [CORPUS…]: runs one fuzz target under libFuzzer. `Tests/fuzz`
// builds it. After a trap or a wrong result, the program ends and leaves the input in a file.

import CFuzzer
import FuzzTargets
import Glibc

_ = ChosenTarget.target
var count = CommandLine.argc
var arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>? = CommandLine.unsafeArgv
exit(
  LLVMFuzzerRunDriver(&count, &arguments) { data, count in
    if let finding = ChosenTarget.target.run(Array(UnsafeBufferPointer(start: data, count: count))) {
      ChosenTarget.say(finding)
      abort()
    }
    return 0
  })
