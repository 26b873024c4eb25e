import Glibc
import Hardware
import Linux
import Synchronization
import VFIO

/// Interrupts of a passed-through function: which kind the device signals, and where to. A vector's message goes from
/// the device's interrupt to the guest's local APIC within the kernel: VFIO signals the very eventfd that KVM turns
/// into the message, which is the guest's own, remapped.
///
/// A vector is had from the host when the guest uses it first, since the host's vectors are few and many tables long.
///
/// Lock order: MSI-X's or MSI's own lock, then a route's; then `state`, with which the kernel is called.
final class PassthroughInterrupts: InterruptRouter {
  enum Kind: Hashable, Sendable {
    case none, intx, msi, msix
  }

  private struct State {
    var kind = Kind.none
    /// The device signals none any more.
    var hasEnded = false
    /// Vectors that the guest has ever used since the reset, from 0 on.
    var used: [Kind: Int] = [:]
    /// Vectors that the device signals.
    var signalled = 0
    var routes: [Kind: [any EventRoute]] = [:]
    /// By errno: the guest chooses how many vectors it asks for, which the text names.
    var told: Set<Int32> = []
  }

  /// What INTx signals, and what unmasks it.
  struct Events: Sendable {
    let interrupt: Int32
    let unmask: Int32
  }

  private let device: VFIODevice
  private let inner: any InterruptRouter
  /// In the order in which a function makes its routes: MSI-X's, then MSI's.
  private let msixCount: Int
  private let intx: Events?
  private let tell: @Sendable (SystemError) -> Void
  private let state = Mutex(State())

  /// - Parameters:
  ///   - inner: the board's.
  ///   - intx: nil for a function without a pin.
  ///   - tell: called once for each reason why interrupts of the device do not come. It must not wait.
  init(
    _ device: VFIODevice, inner: any InterruptRouter, msixCount: Int, intx: Events?,
    tell: @escaping @Sendable (SystemError) -> Void = { _ in }
  ) {
    self.device = device
    self.inner = inner
    self.msixCount = msixCount
    self.intx = intx
    self.tell = tell
  }

  /// Whether the accelerator gives out eventfds; asked once the function has its routes.
  var isPossible: Bool {
    state.withLock { state in state.routes.values.allSatisfy { $0.first.map { $0.event() != nil } ?? true } }
  }

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    let route = inner.makeRoute(for: requester)
    guard let route = route as? any EventRoute else { return route }
    return state.withLock { state in
      let kind = (state.routes[.msix]?.count ?? 0) < msixCount ? Kind.msix : .msi
      let number = state.routes[kind]?.count ?? 0
      state.routes[kind, default: []].append(route)
      return Route(route, of: self, kind, number)
    }
  }

  /// A route that tells when its vector is used.
  private final class Route: InterruptRoute {
    private let route: any EventRoute
    private weak let owner: PassthroughInterrupts?
    private let kind: Kind
    private let number: Int

    init(_ route: any EventRoute, of owner: PassthroughInterrupts, _ kind: Kind, _ number: Int) {
      self.route = route
      self.owner = owner
      self.kind = kind
      self.number = number
    }

    func set(_ message: InterruptMessage?) {
      // The eventfd gets its message before the device can signal it.
      route.set(message)
      if message != nil { owner?.use(kind, number) }
    }

    func signal() { route.signal() }
  }

  private func use(_ kind: Kind, _ number: Int) {
    state.withLock { state in
      guard number >= state.used[kind] ?? 0 else { return }
      state.used[kind] = number + 1
      if state.kind == kind { extend(&state) }
    }
  }

  /// The guest chose another kind, or none.
  func choose(_ kind: Kind) {
    state.withLock { state in
      guard kind != state.kind, !state.hasEnded else { return }
      stop(&state)
      state.kind = kind
      switch kind {
      case .none: break
      case .intx: startINTx(&state)
      case .msi, .msix: extend(&state)
      }
    }
  }

  /// The function is reset: nothing is used any more.
  func reset() {
    state.withLock { state in
      stop(&state)
      state.kind = .none
      state.used = [:]
    }
  }

  /// The function is gone. A reset with others may be under way that would choose a kind once more.
  func end() {
    state.withLock { $0.hasEnded = true }
    reset()
  }

  private func stop(_ state: inout State) {
    switch state.kind {
    case .none: break
    case .intx: if intx != nil { try? device.disable(.intx) }
    case .msi: if state.signalled > 0 { try? device.disable(.msi) }
    case .msix: if state.signalled > 0 { try? device.disable(.msix) }
    }
    state.signalled = 0
  }

  private func startINTx(_ state: inout State) {
    guard let intx else { return }
    do {
      try device.signal(.intx, to: [intx.interrupt])
      try device.unmaskINTx(by: intx.unmask)
    } catch {
      // As if its wire were cut.
      fail(error, &state)
    }
  }

  private func fail(_ error: SystemError, _ state: inout State) {
    if state.told.insert(error.code).inserted { tell(error) }
  }

  /// Has the device signal every vector that is used.
  private func extend(_ state: inout State) {
    let wanted = state.used[state.kind] ?? 0
    guard wanted > state.signalled, let routes = state.routes[state.kind], wanted <= routes.count else { return }
    let kind: VFIOInterruptKind = state.kind == .msix ? .msix : .msi
    let events = routes[..<wanted].map { $0.event() }
    if events.contains(nil) { fail(SystemError("eventfd", code: EMFILE), &state) }
    let former = state.signalled
    if former > 0 {
      // MSI-X can often have more without taking what there is away; what came meanwhile is not lost then.
      if kind == .msix, (try? device.signal(kind, from: former, to: Array(events[former...]))) != nil {
        state.signalled = wanted
        return
      }
      try? device.disable(kind)
    }
    do {
      try device.signal(kind, to: events)
      state.signalled = wanted
    } catch {
      fail(error, &state)
      // The device keeps the vectors that it had.
      let kept = former > 0 && (try? device.signal(kind, to: Array(events[..<former]))) != nil
      state.signalled = kept ? former : 0
    }
  }
}
