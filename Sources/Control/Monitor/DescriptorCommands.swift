import JSON
import Machine

/// Commands for open files that clients pass over the monitor's socket (qapi/misc.json). The texts of errors are those
/// of monitor/fds.c.
extension MonitorCommands {
  static let descriptorCommands: [MonitorCommand] = [
    MonitorCommand("getfd", argument: "fdname", DescriptorArguments.name),
    MonitorCommand("closefd", argument: "fdname", DescriptorArguments.close),
    MonitorCommand(
      "add-fd", DescriptorSetArguments.self,
      answers: .object("AddfdInfo", ["fdset-id": .integer, "fd": .integer])
    ) { (arguments, target) throws(MonitorError) in
      let file = try DescriptorArguments.take(from: target)
      let set = try mapError(
        try target.descriptors.sets.add(file, to: arguments.set, note: arguments.note), MonitorError.init(descriptor:))
      return .answer(["fdset-id": .integer(set), "fd": .integer(Int64(file.rawValue))])
    },
    MonitorCommand("remove-fd", DescriptorRemovalArguments.self) { (arguments, target) throws(MonitorError) in
      try mapError(
        try target.descriptors.sets.remove(arguments.set, member: arguments.member), MonitorError.init(descriptor:))
    },
    MonitorCommand(
      "query-fdsets",
      answers: .list(
        "FdsetInfo",
        ["fdset-id": .integer, "fds": .array(.object("FdsetFdInfo", ["fd": .integer, "*opaque": .string]))])
    ) { target in
      .array(
        target.descriptors.sets.all.map { set in
          let members = set.members.map { member -> JSONValue in
            ["fd": .integer(Int64(member.file.rawValue)), "opaque": member.note.map { .string($0) }]
          }
          return ["fds": .array(members), "fdset-id": .integer(set.id)]
        })
    },
  ]
}

/// The use of descriptors by commands, in QMP and HMP.
enum DescriptorArguments {
  static func take(from target: any MonitorTarget) throws(MonitorError) -> PassedFile {
    guard let file = target.descriptors.takeOffered() else {
      throw .generic("No file descriptor supplied via SCM_RIGHTS")
    }
    return file
  }

  @Sendable
  static func name(_ name: String, on target: any MonitorTarget) throws(MonitorError) {
    let file = try take(from: target)
    // In place of a name, a number means an inherited descriptor.
    if let first = name.utf8.first, (0x30...0x39).contains(first) {
      throw .generic("Parameter 'fdname' expects a name not starting with a digit")
    }
    target.descriptors.name(file, name)
  }

  @Sendable
  static func close(_ name: String, on target: any MonitorTarget) throws(MonitorError) {
    guard target.descriptors.remove(name) else {
      throw .generic("File descriptor named \(ErrorText.quoted(name)) not found")
    }
  }

  /// Carries out a request that may use up a named file. If it succeeds, the monitor forgets the name.
  static func perform(
    _ name: String?, on target: any MonitorTarget, _ body: (PassedFile?) throws(MonitorError) -> Void
  ) throws(MonitorError) {
    let file = name.flatMap { target.descriptors[$0] }
    try body(file)
    if let name, file != nil { target.descriptors.remove(name) }
  }
}

extension MonitorError {
  init(descriptor problem: DescriptorSets.Problem) {
    self =
      switch problem {
      case .negativeID: .generic("Parameter 'fdset-id' expects a non-negative value")
      case .notFound(let set, nil): .generic("File descriptor named 'fdset-id:\(set)' not found")
      case .notFound(let set, let member?):
        .generic("File descriptor named 'fdset-id:\(set), fd:\(member)' not found")
      case .notNumber(let path): .generic("Could not parse fdset \(path)")
      case .notOpened(let path, let readOnly, let error):
        // O_RDONLY and O_RDWR.
        .generic("Could not dup FD for \(path) flags \(readOnly ? 0 : 2): \(ErrorText.reason(of: error))")
      }
  }
}

struct DescriptorSetArguments: CommandArguments {
  var set: Int64?
  var note: String?

  static let fields: [ArgumentField<Self>] = [ArgumentField("fdset-id", \.set), ArgumentField("opaque", \.note)]
}

struct DescriptorRemovalArguments: CommandArguments {
  var set: Int64 = 0
  var member: Int64?

  static let fields: [ArgumentField<Self>] = [ArgumentField("fdset-id", \.set), ArgumentField("fd", \.member)]
}
