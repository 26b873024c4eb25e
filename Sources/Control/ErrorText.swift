import Hardware
import Machine

/// The texts of errors. An error of the command line becomes one line: the typed words, the problem, and the nearest
/// valid names.
enum ErrorText {
  static func line(for error: CommandLineError) -> String {
    switch error {
    case .unknownOption(let word):
      let names = CommandOptions.all.flatMap(\.names)
      let name = String(word.drop { $0 == "-" })
      let nearest = NearestNames.to(name, among: names).map { "-" + $0 }
      return line([word], "unknown option" + list("nearest", nearest))
    case .missingArgument(let option): return line([option], "its argument is missing")
    case .bareWord(let word):
      return line([word], "no option takes this; a disk image is given by -drive file=FILE,if=virtio")
    case .option(let option, let argument, let problem):
      return line(argument.isEmpty ? [option] : [option, argument], text(for: problem))
    case .configuration(let error): return line([], text(for: error))
    }
  }

  /// Joins the typed words and the problem into one printable line.
  static func line(_ typed: [String], _ problem: String) -> String {
    let parts = ["nestling"] + (typed.isEmpty ? [] : [typed.map(shortened).joined(separator: " ")]) + [problem]
    return printable(parts.joined(separator: ": ")) + "\n"
  }

  /// Cuts a text that is too long to repeat.
  static func shortened(_ text: String) -> String {
    text.unicodeScalars.count <= 160 ? text : String(String.UnicodeScalarView(text.unicodeScalars.prefix(157))) + "..."
  }

  /// Escapes characters that would move the cursor or end the line.
  private static func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
      switch scalar.properties.generalCategory {
      case .control, .format, .lineSeparator, .paragraphSeparator:
        result += "\\u{" + String(scalar.value, radix: 16) + "}"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }

  static func quoted(_ text: String) -> String { "'" + shortened(text) + "'" }

  /// Returns `; WORD: a, b`, or an empty text if there are no names.
  static func list(_ word: String, _ names: [String]) -> String {
    names.isEmpty ? "" : "; \(word): " + names.map(shortened).joined(separator: ", ")
  }

  static func nearest(_ name: String, _ known: [String]) -> String {
    list("nearest", NearestNames.to(name, among: known))
  }

  static func text(for problem: OptionProblem) -> String {
    switch problem {
    case .emptyName: "a name is missing before '='"
    case .missing(let kind): "the \(kind.rawValue) is missing"
    case .unknown(.netdev, _, let known): "unknown \(OptionProblem.WordKind.netdev.rawValue)" + list("supported", known)
    case .unknown(let kind, let name, let known):
      "unknown \(kind.rawValue)" + (known.count == 1 ? list("the only choice", known) : nearest(name, known))
    case .property(let error, let owner): text(for: error, owner: owner)
    case .json(let text): text
    case .empty: "the file name is missing"
    case .needsQTest: "only allowed with -qtest"
    case .otherAccelerator(let name): "another option selects \(quoted(name)): there can be only one accelerator"
    case .deviceWithoutKVM: "only -accel kvm takes device="
    case .cardProperty(let name):
      "-nic cannot set \(quoted(name)): use -netdev with -device virtio-net-pci,netdev=ID,\(name)="
    case .needsKernel: "only allowed with -kernel"
    case .features(let features): "single CPU features cannot be selected yet: leave out \(quoted(features))"
    case .topology(let problem): text(for: problem)
    case .memoryBackend(let problem): text(for: problem)
    case .configuration(let error): text(for: error)
    }
  }

  private static func text(for problem: OptionProblem.TopologyProblem) -> String {
    switch problem {
    case .productIsNot(let count, let product):
      "sockets, cores and threads make \(product) CPUs, not \(count)"
    case .notDivisible(let count, let divisor): "\(count) CPUs cannot be split into groups of \(divisor)"
    case .tooMany(let highest): "that is more than \(highest) CPUs"
    case .hotplug: "maxcpus must be the same as cpus: CPUs cannot be hot-plugged"
    }
  }

  private static func text(for problem: OptionProblem.MemoryBackendProblem) -> String {
    switch problem {
    case .unknown(let id, let known):
      "memory-backend: no object \(quoted(id.text))" + nearest(id.text, known)
    case .wrongType(let id, let typeName):
      "memory-backend: \(quoted(id.text)) is an \(typeName), not a memory-backend-memfd"
    case .sizeMismatch(let machine, let backend):
      "memory-backend has \(size(backend)), but -m asks for \(size(machine))"
    case .unused(let id): "the object is not used: add -machine memory-backend=\(id)"
    }
  }

  static func size(_ bytes: UInt64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] where bytes > 0 && bytes & ((1 << shift) - 1) == 0 {
      return "\(bytes >> UInt64(shift)) \(unit)"
    }
    return "\(bytes) bytes"
  }
}

/// Texts for failed system calls.
extension ErrorText {
  /// Returns the operand, or the call if it has no operand, and the reason.
  static func text(for error: StartError.SystemError) -> String {
    "\(error.operand.isEmpty ? error.call : error.operand): \(reason(of: error))"
  }

  static func reason(of error: StartError.SystemError) -> String {
    switch error.cause {
    case .notAnImage: "neither a regular file nor a block device"
    case .blockDevice: "a block device"
    case .noReader: "a FIFO without a reader"
    case .fileSizeLimit(let limit): "it is a file, and files are limited to \(limit) bytes (RLIMIT_FSIZE, ulimit -f)"
    case .parentEnded: "the process that started this one has ended already"
    case .vectors(let available, let requested): "the host has \(available) of \(requested) vectors for it"
    case .notIPv4Address: "not an IPv4 address"
    case .notPCIDevice: "not a PCI device"
    case nil: error.errnoText
    }
  }
}

/// Texts for properties and their values.
extension ErrorText {
  static func text(for error: PropertyError, owner: String?) -> String {
    switch error {
    case .unknown(let name, let known):
      "\(owner.map { "\($0) has no property" } ?? "unknown property") \(quoted(name))" + nearest(name, known)
    case .value(let name, let text, let error): "\(name) \(self.text(for: error, value: text))"
    case .contradiction(let name, let otherName):
      "\(name) and \(otherName) are the same property, but have different values"
    case .rule(let otherwise): otherwise
    case .unit(let error): text(for: error)
    }
  }

  /// Returns the text after the property's name.
  private static func text(for error: ValueError, value: String) -> String {
    switch error {
    case .notBoolean: "must be on or off, not \(quoted(value))"
    case .notNumber: "must be a whole number (decimal, or hexadecimal with 0x), not \(quoted(value))"
    case .notSize: "must be a size (a number, and K, M, G or T), not \(quoted(value))"
    case .outOfRange(let lowest, let highest): "must be between \(lowest) and \(highest), not \(quoted(value))"
    case .notPowerOfTwo(let lowest, let highest):
      "must be a power of two between \(lowest) and \(highest), not \(quoted(value))"
    case .notOneOf(let words): "must be \(alternatives(words)), not \(quoted(value))"
    case .notPCIAddress:
      "must be a device number from 01 to 1e, hexadecimal, with an optional function from .0 to .7, not \(quoted(value))"
    case .notMACAddress: "must be six bytes, such as 52:54:00:12:34:56, not \(quoted(value))"
    case .notIPv4Address: "must be an IPv4 address, such as 10.0.2.15, not \(quoted(value))"
    case .notIPv4Network: "must be an IPv4 network with 4 to 30 prefix bits, such as 10.0.2.0/24, not \(quoted(value))"
    case .notHostForward:
      "must be [tcp|udp]:[HOSTADDR]:HOSTPORT-[GUESTADDR]:GUESTPORT with IPv4 addresses, such as tcp::2222-:22, "
        + "not \(quoted(value))"
    case .notIdentifier: "must be a letter, then letters, digits, '-', '.' or '_', not \(quoted(value))"
    case .tooLong(let bytes): "must be at most \(bytes) bytes long"
    case .empty: "must not be empty"
    case .refused(let reason): "cannot be \(quoted(value)): \(reason)"
    }
  }

  private static func alternatives(_ words: [String]) -> String {
    guard let last = words.last, words.count > 1 else { return words.first ?? "" }
    return words.dropLast().joined(separator: ", ") + " or " + last
  }
}
