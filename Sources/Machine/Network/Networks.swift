import Devices
import Hardware
import Linux
import Synchronization

/// The netdevs of a machine and its network devices (QEMU's net clients, net/net.c).
///
/// Lock order: its lock is a leaf. Backends are opened and closed without it.
final class Networks: Sendable {
  private struct Netdev {
    let id: Identifier
    let typeName: String
    let backend: any NetdevBackend
  }

  /// A network device. Its entry stays until the next device is added after its end.
  private struct Card {
    let device: DeviceIdentity
    let name: String
    let typeName: String
    let address: MACAddress
    /// The netdev, unless it was removed and the device is gone.
    var netdev: Netdev? {
      guard let use, let backend = use.backend else { return nil }
      return Netdev(id: use.id, typeName: use.typeName, backend: backend)
    }
    let use: WeakNetdev?
    var model = WeakModel(nil)
  }

  /// A device holds its netdev's backend itself. Here a weak reference suffices: the entry outlives the device.
  private struct WeakNetdev: Sendable {
    let id: Identifier
    let typeName: String
    weak let backend: (any NetdevBackend)?

    init(_ netdev: Netdev) {
      id = netdev.id
      typeName = netdev.typeName
      backend = netdev.backend
    }
  }

  private struct WeakModel: Sendable {
    weak let model: VirtioNet?
    init(_ model: VirtioNet?) { self.model = model }
  }

  private struct State {
    var netdevs: [Netdev] = []
    /// Ids of netdevs that are being opened.
    var reserved: Set<Identifier> = []
    var cards: [Card] = []
    var listener: (@Sendable (MachineNotice) -> Void)?
    /// The notices from before there was a listener.
    var early: [MachineNotice] = []
    var hasEnded = false
  }

  private let loop: EventLoop?
  private let state = Mutex(State())

  /// - Parameter loop: serves the backends; nil for a machine without netdevs.
  init(on loop: EventLoop? = nil) { self.loop = loop }

  /// Sets the listener, and calls it for each earlier notice. Called once.
  /// - Parameter listener: called on any thread for each notice of a netdev, in their order. Must not block.
  func listen(_ listener: @escaping @Sendable (MachineNotice) -> Void) {
    while true {
      let early = state.withLock { state -> [MachineNotice] in
        if state.early.isEmpty { state.listener = listener }
        defer { state.early = [] }
        return state.early
      }
      if early.isEmpty { return }
      for notice in early { listener(notice) }
    }
  }

  // MARK: Netdevs

  /// Opens a netdev.
  /// - Throws: `duplicate` if there is one of that name, or the host's error.
  func open(
    _ options: any NetdevOptions, id: Identifier, memory: GuestMemory, chardevs: Chardevs?
  ) throws(NetdevError) {
    guard let loop, let options = options as? any NetdevOptions & NetdevOpening else { throw .ended }
    let problem = state.withLock { state -> NetdevError? in
      if state.hasEnded { return .ended }
      if state.reserved.contains(id) || state.netdevs.contains(where: { $0.id == id }) { return .duplicate }
      state.reserved.insert(id)
      return nil
    }
    if let problem { throw problem }
    let backend: any NetdevBackend
    do throws(NetdevOpenError) {
      let host = NetdevHost(loop: loop, memory: memory, chardevs: chardevs) { [weak self] in self?.notify($0) }
      backend = try options.open(on: host)
    } catch {
      state.withLock { _ = $0.reserved.remove(id) }
      throw .host(error)
    }
    let hasEnded = state.withLock { state in
      state.reserved.remove(id)
      if !state.hasEnded {
        state.netdevs.append(Netdev(id: id, typeName: type(of: options).typeName, backend: backend))
      }
      return state.hasEnded
    }
    if hasEnded {
      backend.close()
      throw .ended
    }
  }

  /// Waits until a netdev has started.
  func awaitStart(of id: Identifier) throws(NetdevOpenError) {
    let netdev = state.withLock { state in state.netdevs.first { $0.id == id } }
    try netdev?.backend.awaitStart(patience: Self.startTime)
  }

  /// The limit of `awaitStart`, in nanoseconds. passt starts in 0.3 s.
  private static let startTime: UInt64 = 5_000_000_000

  /// The most notices that wait for a listener; the newest stay. A peer may connect and disconnect during a long start.
  private static let earlyLimit = 256

  private func notify(_ notice: MachineNotice) {
    let listener = state.withLock { state in
      if state.listener == nil {
        if state.early.count == Self.earlyLimit { state.early.removeFirst() }
        state.early.append(notice)
      }
      return state.listener
    }
    listener?(notice)
  }

  /// Closes a netdev. A device that uses it keeps it, with its link down.
  func close(_ name: String) {
    let netdev = state.withLock { state in
      state.netdevs.firstIndex { $0.id.text == name }.map { state.netdevs.remove(at: $0) }
    }
    netdev?.backend.close()
  }

  /// Closes all netdevs, at the end of the machine.
  func closeAll() {
    let netdevs = state.withLock { state in
      defer { state.netdevs = [] }
      state.hasEnded = true
      return state.netdevs
    }
    for netdev in netdevs { netdev.backend.close() }
  }

  // MARK: Devices

  /// Makes a network device and adds it to the list.
  /// - Parameters:
  ///   - address: the device's address; nil for the first free one from 52:54:00:12:34:56 on.
  ///   - exists: returns whether a device is still part of the machine.
  ///   - make: makes the device on a backend and with an address.
  func add(
    _ device: Device, on use: NetdevUse?, address: MACAddress?, exists: (DeviceIdentity) -> Bool,
    _ make: (any NetworkBackend, MACAddress) throws(StartError) -> VirtioNet
  ) throws(StartError) -> VirtioNet {
    let known = state.withLock { $0.cards }
    let gone = Set(known.map(\.device).filter { !exists($0) })
    let (netdev, chosen) = state.withLock { state -> (Netdev?, MACAddress) in
      state.cards.removeAll { gone.contains($0.device) }
      let netdev = use.flatMap { use in state.netdevs.first { $0.id == use.id } }
      let name = device.id?.text ?? Self.freeName(device.typeName, state.cards)
      let chosen = address ?? Self.freeAddress(state.cards)
      // The entry reserves the address while the device is made.
      state.cards.append(
        Card(
          device: device.identity, name: name, typeName: device.typeName, address: chosen,
          use: netdev.map { WeakNetdev($0) }))
      return (netdev, chosen)
    }
    do throws(StartError) {
      if let use, netdev == nil {
        throw .netdevGone(use)
      }
      let model = try make(netdev?.backend ?? NoNetwork(), chosen)
      state.withLock { state in
        guard let index = state.cards.firstIndex(where: { $0.device == device.identity }) else { return }
        state.cards[index].model = WeakModel(model)
      }
      return model
    } catch {
      state.withLock { $0.cards.removeAll { $0.device == device.identity } }
      throw error
    }
  }

  /// Returns the name of a device without an id, as QEMU gives it (net/net.c, assign_name).
  private static func freeName(_ typeName: String, _ cards: [Card]) -> String {
    let names = Set(cards.map(\.name))
    return (0...cards.count).lazy.map { "\(typeName).\($0)" }.first { !names.contains($0) } ?? typeName
  }

  /// Returns the first free one of QEMU's default addresses (net/net.c, qemu_macaddr_default_if_unset).
  private static func freeAddress(_ cards: [Card]) -> MACAddress {
    let taken = Set(cards.map(\.address))
    let all = (0x56..<0xff).lazy.map { MACAddress(rawValue: 0x5254_0012_3400 | $0) }
    return all.first { !taken.contains($0) } ?? MACAddress(rawValue: 0x5254_0012_34ff)
  }

  // MARK: Monitors

  /// Sets whether the link of a device or a netdev may be up (net/net.c, qmp_set_link). The link of a netdev includes
  /// that of its device.
  /// - Returns: false if there is no such device and no such netdev.
  func setLink(_ name: String, up: Bool) -> Bool {
    let (netdev, model, isKnown) = state.withLock { state -> (Netdev?, VirtioNet?, Bool) in
      if let netdev = state.netdevs.first(where: { $0.id.text == name }) {
        return (netdev, state.cards.first { $0.netdev?.backend === netdev.backend }?.model.model, true)
      }
      let model = state.cards.first { $0.name == name }?.model.model
      return (nil, model, model != nil)
    }
    netdev?.backend.link.setEnabled(up)
    model?.setLink(up: up)
    return isKnown
  }

  var inspection: (netdevs: [MachineInspection.NetdevState], cards: [MachineInspection.NetworkCard]) {
    let (netdevs, cards) = state.withLock { ($0.netdevs, $0.cards) }
    func describe(_ netdev: Netdev) -> MachineInspection.NetdevState {
      MachineInspection.NetdevState(
        id: netdev.id.text, typeName: netdev.typeName, status: netdev.backend.status,
        isLinkUp: netdev.backend.link.isUp)
    }
    let present = cards.compactMap { card in card.model.model.map { (card, $0) } }
    let free = netdevs.filter { netdev in !present.contains { $0.0.netdev?.backend === netdev.backend } }
    return (
      free.map(describe),
      present.map { card, model in
        MachineInspection.NetworkCard(
          name: card.name, typeName: card.typeName, address: model.address.text, isLinkUp: model.isLinkUp,
          netdev: card.netdev.map(describe))
      }
    )
  }
}

/// The reason why a netdev was not opened.
enum NetdevError: Error {
  case duplicate
  case ended
  case host(NetdevOpenError)
}
