import Machine

/// What `-smp` says. What is left out is worked out as QEMU does since 6.2: sockets and threads are one,
/// cores are the rest (hw/core/machine-smp.c).
struct ProcessorArguments: TypedOptions {
  var count: UInt32?
  var highestCount: UInt32?
  var sockets: UInt32?
  var cores: UInt32?
  var threads: UInt32?

  private static let limit = UInt32(ProcessorTopology.maximumCount)
  private static let noSuchLevel = "x86 CPUs are grouped by sockets, cores and threads here: only 1 is possible"

  static let properties: [Property<Self>] = [
    Property("cpus", \.count, .within(1...limit), help: "CPUs"),
    Property("maxcpus", \.highestCount, .within(1...limit), help: "The same as cpus: no CPU is plugged in later"),
    Property("sockets", \.sockets, .within(1...limit), help: "Sockets"),
    Property("dies", settled: UInt32(1), because: noSuchLevel, help: "Dies a socket"),
    Property("clusters", settled: UInt32(1), because: noSuchLevel, help: "Clusters a die"),
    Property("cores", \.cores, .within(1...limit), help: "Cores a socket"),
    Property("threads", \.threads, .within(1...limit), help: "Threads a core"),
  ]

  func topology() throws(OptionProblem.TopologyProblem) -> ProcessorTopology {
    // Each is at most 4096, so no product of three overflows.
    let threads = Int(threads ?? 1)
    var topology = ProcessorTopology(
      sockets: Int(sockets ?? 1), coresPerSocket: Int(cores ?? 1), threadsPerCore: threads)
    if let count = (count ?? highestCount).map(Int.init) {
      if let highestCount, Int(highestCount) != count { throw .hotplug }
      if cores == nil {
        topology.coresPerSocket = try Self.divide(count, by: topology.sockets * threads)
      } else if sockets == nil {
        topology.sockets = try Self.divide(count, by: topology.coresPerSocket * threads)
      } else if self.threads == nil {
        topology.threadsPerCore = try Self.divide(count, by: topology.sockets * topology.coresPerSocket)
      }
      if topology.count != count { throw .productIsNot(count: count, product: topology.count) }
    }
    guard topology.count <= ProcessorTopology.maximumCount else {
      throw .tooMany(highest: ProcessorTopology.maximumCount)
    }
    return topology
  }

  private static func divide(_ count: Int, by divisor: Int) throws(OptionProblem.TopologyProblem) -> Int {
    guard count.isMultiple(of: divisor) else { throw .notDivisible(count: count, by: divisor) }
    return count / divisor
  }
}
