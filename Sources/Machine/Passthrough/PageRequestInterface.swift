import Hardware
import Linux
import PCI
import VFIO
import VTd

/// The Page Request Interface of a passed-through function (PRI; PCI Express Base 10.5.2) as its guest sees it, and its
/// place behind the guest's unit. The device's own registers are the host kernel's: whether the guest enabled page
/// requests, and which of its responses fit none, is kept in the function's configuration space here.
///
/// To the unit the function is one with a translation cache that answers each invalidation at once: the host flushes the
/// device's cache with the first stage's own invalidations, which the unit's bindings hand over before a wait descriptor
/// completes.
final class PageRequestInterface: TranslationCache, PageRequestTaker {
  private let function: Function
  /// Of the capability, in configuration space.
  private let offset: Int
  private let port: any RequestPort
  private let requests: HostPageRequests
  private let device: UInt32
  private let failed: @Sendable (SystemError) -> Void

  /// - Parameters:
  ///   - offset: of the capability.
  ///   - device: by the kernel's name for it.
  ///   - failed: hears that the host's queue can be used no more.
  init(
    of function: Function, at offset: Int, port: any RequestPort, requests: HostPageRequests, device: UInt32,
    failed: @escaping @Sendable (SystemError) -> Void
  ) {
    self.function = function
    self.offset = offset
    self.port = port
    self.requests = requests
    self.device = device
    self.failed = failed
  }

  /// Until `stop` the interface holds itself.
  func start() {
    port.connect(self)
    requests.add(self, for: device)
  }

  /// What is outstanding is answered; nothing comes any more.
  func stop() {
    requests.remove(device)
    port.connect(nil)
  }

  // MARK: The host's side

  func take(_ request: PageRequest) -> PageRequestOutcome {
    // The host enabled them for its own sake; as far as the guest knows the function sends none.
    control.contains(.enable) ? port.requestPage(request) : .answered(.invalidRequest)
  }

  func queueFailed(_ error: SystemError) { failed(error) }

  // MARK: The unit's side

  func invalidate(_ request: InvalidateRequest) { port.completeInvalidations(1 << UInt32(request.tag & 31)) }

  func receive(_ response: PageGroupResponse) {
    let isExpected = requests.respond(response, from: device)
    guard !isExpected || response.code == .responseFailure else { return }
    function.updateConfiguration { space in
      var status = PageRequestStatus(rawValue: space.get(UInt16.self, offset + PageRequestStatus.offset))
      if !isExpected { status.insert(.unexpectedGroupIndex) }
      if response.code == .responseFailure { status.insert(.responseFailure) }
      space.set(offset + PageRequestStatus.offset, status.rawValue)
    }
  }

  // MARK: The guest's registers

  private var control: PageRequestControl {
    PageRequestControl(
      rawValue: UInt16(
        truncatingIfNeeded: function.register(at: offset + PageRequestControl.offset, width: .word)))
  }

  /// Of an access that reads these bytes.
  /// - Parameter own: as the configuration space has it.
  func configurationRead(_ bytes: Range<Int>, own: UInt64) -> UInt64 {
    let status = offset + PageRequestStatus.offset + 1
    guard bytes.contains(status) else { return own }
    // Stopped: not enabled, and nothing outstanding.
    var value = own
    value[bit: 8 * (status - bytes.lowerBound)] = !control.contains(.enable) && !requests.hasOutstanding(device)
    return value
  }

  /// The guest wrote these bytes.
  func configurationWritten(_ bytes: Range<Int>, value: UInt64) {
    let control = offset + PageRequestControl.offset
    guard bytes.contains(control) else { return }
    let isReset = (value >> UInt64(8 * (control - bytes.lowerBound)))[
      bit: PageRequestControl.reset.rawValue.trailingZeroBitCount]
    if isReset, !self.control.contains(.enable) { requests.answerAll(of: device) }
  }

  /// The function is about to be reset, after which it awaits no response.
  func reset() { requests.answerAll(of: device) }
}

extension VFIOPCI {
  /// Has the device's page requests go to the guest, where it is shown that they do. They end with the function.
  func servePageRequests(
    _ requests: HostPageRequests, of device: UInt32, _ bound: HostBoundDevice, _ bindings: HostBindings
  ) {
    guard let offset = pageRequestOffset else { return }
    let interface = PageRequestInterface(
      of: function, at: offset, port: function.environment.makeRequestPort(), requests: requests, device: device
    ) { [weak bound, weak bindings] error in
      guard let bound else { return }
      bound.refusePageRequests(error)
      bindings?.renew(bound)
    }
    interface.start()
    pageRequests = interface
  }
}
