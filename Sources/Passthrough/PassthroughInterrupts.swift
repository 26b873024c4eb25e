import Glibc
import Hardware
import Linux
import Synchronization
import VFIO

/// The interrupts of a passed-through function: the mechanism that the device uses (INTx, MSI or MSI-X), and the
/// eventfds. A vector goes from the device to the guest's local APIC within the kernel: VFIO signals an eventfd, and
/// for each signal KVM sends the guest's message, after interrupt remapping.
///
/// Host vectors are allocated when the guest first uses them, because they are scarce and many MSI-X tables are long.
///
/// Lock order: the lock of MSI-X or MSI, then a route's; then `state`, which is held across calls of the kernel.
final class PassthroughInterrupts: InterruptRouter {
  enum Mechanism: Hashable, Sendable {
    case none, intx, msi, msix
  }

  private struct State {
    var mechanism = Mechanism.none
    /// Whether the function is gone. If so, the device signals no more interrupts.
    var hasEnded = false
    /// The number of vectors, from 0 on, that the guest has used since the reset.
    var used: [Mechanism: Int] = [:]
    /// The number of vectors that the device signals now.
    var signalled = 0
    var routes: [Mechanism: [any EventRoute]] = [:]
    /// The errors that were reported, by errno: their text contains the number of vectors, which the guest chooses.
    var reported: Set<Int32> = []
  }

  /// The eventfd that INTx signals, and the one that unmasks INTx.
  struct Events: Sendable {
    let interrupt: Int32
    let unmask: Int32
  }

  private let device: VFIODevice
  private let inner: any InterruptRouter
  /// The number of MSI-X vectors. A function makes their routes first, then those of MSI.
  private let msixCount: Int
  private let intx: Events?
  private let report: @Sendable (SystemError) -> Void
  private let state = Mutex(State())

  /// - Parameters:
  ///   - inner: the board's router.
  ///   - intx: nil for a function without a pin.
  ///   - report: called once for each errno with which the host refuses interrupts. It must not wait.
  init(
    _ device: VFIODevice, inner: any InterruptRouter, msixCount: Int, intx: Events?,
    report: @escaping @Sendable (SystemError) -> Void = { _ in }
  ) {
    self.device = device
    self.inner = inner
    self.msixCount = msixCount
    self.intx = intx
    self.report = report
  }

  /// Whether the accelerator has eventfds for interrupts. Valid after the function has made its routes.
  var isPossible: Bool {
    state.withLock { state in state.routes.values.allSatisfy { $0.first.map { $0.event() != nil } ?? true } }
  }

  func makeRoute(for requester: Requester) -> any InterruptRoute {
    let route = inner.makeRoute(for: requester)
    guard let route = route as? any EventRoute else { return route }
    return state.withLock { state in
      let mechanism = (state.routes[.msix]?.count ?? 0) < msixCount ? Mechanism.msix : .msi
      let number = state.routes[mechanism]?.count ?? 0
      state.routes[mechanism, default: []].append(route)
      return Route(route, of: self, mechanism, number)
    }
  }

  /// A route that reports the first use of its vector.
  private final class Route: InterruptRoute {
    private let route: any EventRoute
    private weak let owner: PassthroughInterrupts?
    private let mechanism: Mechanism
    private let number: Int

    init(_ route: any EventRoute, of owner: PassthroughInterrupts, _ mechanism: Mechanism, _ number: Int) {
      self.route = route
      self.owner = owner
      self.mechanism = mechanism
      self.number = number
    }

    func set(_ message: InterruptMessage?) {
      // The eventfd gets its message before the device can signal it.
      route.set(message)
      if message != nil { owner?.use(mechanism, number) }
    }

    func signal() { route.signal() }
  }

  private func use(_ mechanism: Mechanism, _ number: Int) {
    state.withLock { state in
      guard number >= state.used[mechanism] ?? 0 else { return }
      state.used[mechanism] = number + 1
      if state.mechanism == mechanism { extend(&state) }
    }
  }

  /// Switches to the mechanism that the guest has chosen, or to none.
  func choose(_ mechanism: Mechanism) {
    state.withLock { state in
      guard mechanism != state.mechanism, !state.hasEnded else { return }
      stop(&state)
      state.mechanism = mechanism
      switch mechanism {
      case .none: break
      case .intx: startINTx(&state)
      case .msi, .msix: extend(&state)
      }
    }
  }

  /// Stops the interrupts and forgets the used vectors, for a reset of the function.
  func reset() {
    state.withLock { state in
      stop(&state)
      state.mechanism = .none
      state.used = [:]
    }
  }

  /// Ends the interrupts when the function is gone. A shared reset that is still in progress cannot enable them again.
  func end() {
    state.withLock { $0.hasEnded = true }
    reset()
  }

  private func stop(_ state: inout State) {
    switch state.mechanism {
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
      // The guest gets no INTx of the device, as if the wire were cut.
      fail(error, &state)
    }
  }

  private func fail(_ error: SystemError, _ state: inout State) {
    if state.reported.insert(error.code).inserted { report(error) }
  }

  /// Makes the device signal every vector that the guest uses.
  private func extend(_ state: inout State) {
    let wanted = state.used[state.mechanism] ?? 0
    guard wanted > state.signalled, let routes = state.routes[state.mechanism], wanted <= routes.count else { return }
    let type: VFIOInterruptType = state.mechanism == .msix ? .msix : .msi
    let events = routes[..<wanted].map { $0.event() }
    if events.contains(nil) { fail(SystemError("eventfd", code: EMFILE), &state) }
    let former = state.signalled
    if former > 0 {
      // MSI-X can often add vectors while the others stay enabled; no interrupt is lost then.
      if type == .msix, (try? device.signal(type, from: former, to: Array(events[former...]))) != nil {
        state.signalled = wanted
        return
      }
      try? device.disable(type)
    }
    do {
      try device.signal(type, to: events)
      state.signalled = wanted
    } catch {
      fail(error, &state)
      // Restore the vectors that the device had.
      let kept = former > 0 && (try? device.signal(type, to: Array(events[..<former]))) != nil
      state.signalled = kept ? former : 0
    }
  }
}
