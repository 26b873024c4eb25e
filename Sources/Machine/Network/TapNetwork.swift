import Devices
import Glibc
import Hardware
import Linux
import Synchronization
import Vhost

/// `-netdev tap`: one file of a tap interface for each queue pair. The link is up until the interface is gone.
///
/// With `vhost=on`, the kernel's vhost-net moves the frames. Otherwise, or if the kernel refuses a queue, the device's
/// workers read and write frames in non-blocking calls. While one finds no frame, the loop watches its
/// file. Changes of offloads and queues wait for the kernel's network lock, so they run on a thread of the backend.
///
/// Lock order: `queues` is a leaf, except for a `WatchedDescriptor`'s lock, which is taken last; `settings`, then those
/// of the vhost. The device is called without them.
final class TapNetwork: NetdevBackend {
  private final class Queue: Sendable {
    let tap: TapInterface
    let watch: WatchedDescriptor

    init(_ tap: TapInterface, _ watch: WatchedDescriptor) {
      self.tap = tap
      self.watch = watch
    }
  }

  /// The settings that the device wants. `appliesLater` is true while the thread has not read them.
  private struct Settings {
    var offloads: TapInterface.Offloads = []
    var activePairs = 1
    var appliesLater = false
  }

  let link = NetdevLink(isConnected: true)
  let capabilities: NetworkCapabilities
  private let vhost: VhostDatapath?
  private let name: String
  private let host: NetdevHost
  private let queues: Mutex<[Queue]>
  private let settings = Mutex(Settings())
  private let work = WorkQueue(name: "tap")
  /// Takes the link down on the loop's thread, after a call of the device has found that the interface is gone.
  private let loss: EventLoop.Job

  /// - Parameters:
  ///   - taps: one for each queue pair, all of the same interface.
  ///   - vhost: on the same taps; nil without vhost-net.
  init(_ taps: [TapInterface], vhost: VhostDatapath? = nil, on host: NetdevHost) throws(SystemError) {
    self.vhost = vhost
    let known = NetworkOffloads(taps[0].knownOffloads)
    capabilities = NetworkCapabilities(sends: known, receives: known, pairs: taps.count)
    name = taps[0].name
    self.host = host
    loss = EventLoop.Job(on: host.loop)
    queues = Mutex([])
    var opened: [Queue] = []
    for (pair, tap) in taps.enumerated() {
      let watch = try WatchedDescriptor(tap.rawValue, on: host.loop, []) { [weak self] in self?.handle($0, pair: pair) }
      opened.append(Queue(tap, watch))
    }
    // Pair 0 is the only active one at first.
    for queue in opened.dropFirst() { try queue.tap.setEnabled(false) }
    queues.withLock { $0 = opened }
    loss.onRun { [weak self] in self?.link.setConnected(false) }
  }

  var status: NetdevStatus { queues.withLock { $0.isEmpty } ? .closed : .interface(name) }

  func close() {
    vhost?.close()
    let ended = queues.withLock { queues in
      defer { queues = [] }
      return queues
    }
    for queue in ended { queue.watch.end() }
    work.stop()
    link.setConnected(false)
  }

  private func queue(_ pair: Int) -> Queue? { queues.withLock { pair < $0.count ? $0[pair] : nil } }

  // MARK: The loop's thread

  private func handle(_ events: EventLoop.Events, pair: Int) {
    guard let queue = queue(pair) else { return }
    if events.contains(.failed) {
      // The interface was deleted.
      queue.watch.remove([.readable, .writable])
      return link.setConnected(false)
    }
    queue.watch.remove(events)
    if events.contains(.readable) { link.frontend?.packetsAvailable(pair: pair) }
    if events.contains(.writable) { link.frontend?.roomAvailable(pair: pair) }
  }

  // MARK: Calls of the device

  var datapath: (any QueueDatapath)? { vhost }
  func deviceLinkChanged(isUp: Bool) { vhost?.setLink(up: isUp) }

  func setOffloads(_ offloads: NetworkOffloads) { change { $0.offloads = TapInterface.Offloads(offloads) } }
  func setActivePairs(_ count: Int) { change { $0.activePairs = count } }

  private func change(_ body: (inout Settings) -> Void) {
    let isFirst = settings.withLock { settings in
      let earlier = settings.offloads
      body(&settings)
      // The kernel cannot drop the frames with other offloads.
      if settings.offloads != earlier { vhost?.setHeld(true) }
      defer { settings.appliesLater = true }
      return !settings.appliesLater
    }
    guard isFirst else { return }
    // Without a thread, the tap keeps its offloads.
    work.submit(
      { [weak self] in self?.apply() },
      orElse: { [weak self] in
        _ = self?.takeSettings()
        self?.endHold()
      })
  }

  private func takeSettings() -> Settings {
    settings.withLock { settings in
      settings.appliesLater = false
      return settings
    }
  }

  /// Lets the vhost move frames again, unless the settings have changed since they were taken.
  private func endHold() { settings.withLock { if !$0.appliesLater { vhost?.setHeld(false) } } }

  private func apply() {
    let wanted = takeSettings()
    let all = queues.withLock { $0 }
    // The kernel may refuse if the interface is gone; the device drops packets with other offloads.
    try? all.first?.tap.setOffloads(wanted.offloads)
    endHold()
    guard all.count > 1 else { return }
    for (pair, queue) in all.enumerated() {
      // The kernel refuses to attach an attached queue, and to detach a detached one.
      try? queue.tap.setEnabled(pair < wanted.activePairs)
    }
  }

  func send(_ header: NetworkHeader, _ segments: [PhysicalSegment], pair: Int) -> NetworkSendResult {
    guard let queue = queue(pair) else { return .dropped }
    do {
      let isSent = try queue.tap.write(header.bytes, segments.count, of: host.memory) {
        ScatteredFile.Segment(address: segments[$0].address, count: segments[$0].count)
      }
      if !isSent { queue.watch.add(.writable) }
      return isSent ? .sent : .full
    } catch {
      return .dropped
    }
  }

  func receive(into packet: inout MutableRawSpan, pair: Int) -> Int {
    guard let queue = queue(pair) else { return 0 }
    do {
      if let count = try queue.tap.read(into: &packet) { return count }
      queue.watch.add(.readable)
    } catch {
      // EBADFD: the interface was deleted.
      loss.schedule()
    }
    return 0
  }
}

extension NetworkOffloads {
  private static let ofTap: [(NetworkOffloads, TapInterface.Offloads)] = [
    (.checksum, .checksum), (.tso4, .tso4), (.tso6, .tso6), (.ecn, .tsoECN), (.ufo, .ufo), (.uso4, .uso4),
    (.uso6, .uso6),
  ]

  fileprivate init(_ offloads: TapInterface.Offloads) {
    self = []
    for (own, other) in Self.ofTap where offloads.contains(other) { insert(own) }
  }

  fileprivate var ofTap: TapInterface.Offloads {
    Self.ofTap.reduce(into: []) { if contains($1.0) { $0.insert($1.1) } }
  }
}

extension TapInterface.Offloads {
  fileprivate init(_ offloads: NetworkOffloads) { self = offloads.ofTap }
}

extension TapNetdevOptions: NetdevOpening {
  func open(on host: NetdevHost) throws(NetdevOpenError) -> any NetdevBackend {
    let taps: [TapInterface]
    do {
      taps = try interfaces()
    } catch {
      throw .tap(error)
    }
    if let other = taps.first(where: { $0.name != taps[0].name }) {
      throw .differentInterfaces(taps[0].name, other.name)
    }
    let vhost = try openVhost(on: taps, host)
    do {
      return try TapNetwork(taps, vhost: vhost, on: host)
    } catch {
      throw .system(error)
    }
  }

  /// Opens the vhost devices, one for each queue pair; nil without vhost-net.
  private func openVhost(on taps: [TapInterface], _ host: NetdevHost) throws(NetdevOpenError) -> VhostDatapath? {
    guard usesVhost else { return nil }
    let files = vhostDescriptors
    guard files.isEmpty || files.count == taps.count else {
      throw .vhostFileCount(files.count, queues: taps.count)
    }
    var devices: [VhostNet] = []
    for index in taps.indices {
      do throws(VhostNet.Problem) {
        guard !files.isEmpty else {
          devices.append(try VhostNet())
          continue
        }
        guard let file = files[index].opened else { throw VhostNet.Problem.notVhost }
        devices.append(try VhostNet(file))
      } catch {
        throw .vhost(error)
      }
    }
    do throws(SystemError) {
      for device in devices { try device.setMemory(host.memory) }
      return try VhostDatapath(devices, taps: taps.map(\.rawValue), memory: host.memory, loop: host.loop) {
        host.notify(.vhostRefused($0))
      }
    } catch {
      throw .system(error)
    }
  }

  /// Opens the interface's files, one at least.
  private func interfaces() throws(TapInterface.Problem) -> [TapInterface] {
    var taps: [TapInterface] = []
    for reference in tapDescriptors {
      guard let file = reference.opened else { throw .notATap }
      taps.append(try TapInterface(file))
    }
    if !taps.isEmpty { return taps }
    let count = Int(queueCount ?? 1)
    taps = [try TapInterface(named: interface, multiQueue: count > 1)]
    while taps.count < count { taps.append(try TapInterface(named: taps[0].name, multiQueue: true)) }
    return taps
  }
}

extension DescriptorReference {
  /// The open file: one that a monitor's client has passed, or an inherited descriptor; nil if there is none.
  fileprivate var opened: PassedDescriptor? { file ?? number.map { PassedDescriptor(FileDescriptor(owning: $0)) } }
}
