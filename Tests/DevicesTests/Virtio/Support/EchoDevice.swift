import Devices
import Hardware
import Synchronization

/// A device with two queues that copies a chain's readable bytes into its writable buffers, and with eight bytes of
/// configuration.
final class EchoDevice: VirtioDevice {
  private let registers = Mutex([UInt8](0..<8))
  private let counts = Mutex((resets: 0, processed: 0))
  private let owner = Mutex(WeakVirtioTransport())
  private let starts = Mutex<[VirtioFeatures]>([])
  let features: VirtioFeatures
  let featureRequirements: [VirtioFeatureRequirement]
  /// The server of queue 0; nil if the device serves it.
  private let datapath: (any QueueDatapath)?

  init(
    features: VirtioFeatures = VirtioFeatures(bit: 3), requirements: [VirtioFeatureRequirement] = [],
    datapath: (any QueueDatapath)? = nil
  ) {
    self.datapath = datapath
    self.features = features
    featureRequirements = requirements
  }

  var type: UInt16 { 42 }
  var classCode: UInt32 { 0x088000 }
  var name: String { "echo" }
  var queueSizes: [UInt16] { [64, 16] }
  var configuration: [UInt8] { registers.withLock { $0 } }

  var resets: Int { counts.withLock { $0.resets } }
  /// The number of calls of `process`.
  var processed: Int { counts.withLock { $0.processed } }
  /// The features of each start.
  var started: [VirtioFeatures] { starts.withLock { $0 } }
  var transport: (any VirtioTransport)? { owner.withLock { $0.transport } }

  func writeConfiguration(offset: Int, width: AccessWidth, value: UInt64) {
    registers.withLock { bytes in
      for index in 0..<width.rawValue {
        bytes[offset + index] = UInt8(truncatingIfNeeded: value >> UInt64(8 * index))
      }
    }
  }

  func connect(to transport: any VirtioTransport) { owner.withLock { $0 = WeakVirtioTransport(transport) } }

  func start(with features: VirtioFeatures) { starts.withLock { $0.append(features) } }

  func datapath(forQueue index: Int) -> (any QueueDatapath)? { index == 0 ? datapath : nil }

  func process(queue index: Int, _ queue: inout VirtQueue) throws(VirtQueueError) {
    counts.withLock { $0.processed += 1 }
    try queue.drain { queue throws(VirtQueueError) in
      let head = queue.chain.head
      let written: Int
      do throws(DMAError) {
        let count = try queue.takeBytes(Int(min(queue.chain.readable.remaining, 4096)))
        written = try queue.put(Array(queue.bytes[0..<count]))
      } catch { throw .memory(error) }
      try queue.complete(head: head, written: UInt32(written))
    }
  }

  func reset() { counts.withLock { $0.resets += 1 } }
}
