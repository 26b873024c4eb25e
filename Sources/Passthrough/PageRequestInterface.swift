import Hardware
import Linux
import PCI
import VFIO
import VTd

/// The Page Request Interface of a passed-through function (PRI; PCI Express Base 10.5.2) as its guest sees it, behind
/// the guest's unit. The device's own registers belong to the host's kernel. The function's configuration space in
/// Nestling records whether the guest has enabled page requests, and whether a response was unexpected.
///
/// To the unit the function is a translation cache that completes each invalidation at once: the host invalidates the
/// device's cache together with the first stage, and the unit's bindings pass those invalidations to the host before a
/// wait descriptor completes.
final class PageRequestInterface: TranslationCache, PageRequestTaker {
  private let function: Function
  /// The offset of the capability in configuration space.
  private let offset: Int
  private let port: any RequestPort
  private let requests: HostPageRequests
  private let device: UInt32
  private let failed: @Sendable (SystemError) -> Void

  /// - Parameters:
  ///   - offset: the offset of the capability.
  ///   - device: the kernel's number of the device.
  ///   - failed: called when the host's queue has failed.
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

  /// Connects the interface to its unit and to the host's queue, which hold it until `stop`.
  func start() {
    port.connect(self)
    requests.add(self, for: device)
  }

  /// Answers the outstanding groups. No more requests arrive.
  func stop() {
    requests.remove(device)
    port.connect(nil)
  }

  // MARK: The host's side

  func take(_ request: PageRequest) -> PageRequestOutcome {
    // The host has enabled page requests for itself. The guest must see none unless it has enabled them, too.
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

  /// Returns the value that a read of these bytes gives.
  /// - Parameter own: the value in the configuration space.
  func configurationRead(_ bytes: Range<Int>, own: UInt64) -> UInt64 {
    let status = offset + PageRequestStatus.offset + 1
    guard bytes.contains(status) else { return own }
    // The Stopped bit: page requests are disabled, and none is outstanding.
    var value = own
    value[bit: 8 * (status - bytes.lowerBound)] = !control.contains(.enable) && !requests.hasOutstanding(device)
    return value
  }

  /// Handles the guest's write of these bytes.
  func configurationWritten(_ bytes: Range<Int>, value: UInt64) {
    let control = offset + PageRequestControl.offset
    guard bytes.contains(control) else { return }
    let isReset = (value >> UInt64(8 * (control - bytes.lowerBound)))[
      bit: PageRequestControl.reset.rawValue.trailingZeroBitCount]
    if isReset, !self.control.contains(.enable) { requests.answerAll(of: device) }
  }

  /// Answers the outstanding groups before a reset of the function, which then expects no response.
  func reset() { requests.answerAll(of: device) }
}

extension VFIOPCI {
  /// Starts to pass the device's page requests to the guest, if the guest sees the capability. `stop` ends this with
  /// the function.
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
