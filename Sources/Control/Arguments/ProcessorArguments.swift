import Machine

/// The properties of `-smp`. Missing ones are computed as in QEMU since 6.2: sockets and threads are 1, and cores make
/// up the rest (hw/core/machine-smp.c).
struct ProcessorArguments: TypedOptions {
  var count: UInt32?
  var highestCount: UInt32?
  var sockets: UInt32?
  var cores: UInt32?
  var threads: UInt32?

  private static let limit = UInt32(ProcessorTopology.maximumCount)
  private static let noSuchLevel = "CPUs are grouped into sockets, cores and threads only, so this must be 1"

  static let properties: [Property<Self>] = [
    Property("cpus", \.count, .within(1...limit), help: "CPUs"),
    Property("maxcpus", \.highestCount, .within(1...limit), help: "The same as cpus: CPUs cannot be hot-plugged"),
    Property("sockets", \.sockets, .within(1...limit), help: "Sockets"),
    Property("dies", settled: UInt32(1), because: noSuchLevel, help: "Dies per socket"),
    Property("clusters", settled: UInt32(1), because: noSuchLevel, help: "Clusters per die"),
    Property("cores", \.cores, .within(1...limit), help: "Cores per socket"),
    Property("threads", \.threads, .within(1...limit), help: "Threads per core"),
  ]

  func topology() throws(OptionProblem.TopologyProblem) -> ProcessorTopology {
    // Each factor is at most 4096, so the product of the three does not overflow.
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
