/// Tests the least that a machine must do: it loads an ELF, runs it, prints its output on COM1, and takes its exit
/// code.
///
///     Tests/lab/kernel NESTLING "$(Firmware/build)/hello"

func kernelMain() {
  put("hello from a guest")
  if let line = Multiboot.commandLine {
    put(", started with '")
    var at = line
    while load8(at) != 0 {
      Console.put(load8(at))
      at += 1
    }
    put("'")
  }
  endLine()
  Report.pass("hello")
}
