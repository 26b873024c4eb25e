import Devices
import Hardware
import PCI

/// How devices get onto the board and off it again, at the start and later.
///
/// A device comes in three steps: admission (it fits), building (its functions are made; this may wait for the host) and
/// plugging (they are on their bus). It goes in three: it leaves its bus at once, its host side is taken down, which may
/// wait for the host, and then its id, address and backends are free.
extension Board {
  /// Admits a device, builds it and plugs its functions in, as the start does.
  /// - Throws: why it does not fit, or what its backend's host says. Then nothing of it is left.
  @discardableResult
  func add(
    _ options: any DeviceOptions, with configuration: MachineConfiguration
  ) throws(StartError) -> Device {
    let device: Device
    do throws(DeviceProblem) {
      device = try devices.admit(options)
    } catch {
      throw .refused(error)
    }
    trace.recordAdmission(device)
    do throws(StartError) {
      try plug(try build(device, with: configuration), of: device)
      announce(device, toGuest: false)
    } catch {
      unplug(device.identity)
      throw error
    }
    return device
  }

  /// Makes the functions of a device that is admitted. None of them is on a bus yet.
  ///
  /// It may open files and pin RAM, and so wait for the host.
  func build(
    _ device: Device, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    // Only the IOMMU is none: the board is made with it.
    guard let builder = device.options as? any BoardDevice else { return [] }
    return try trace.timing(.built, device) { () throws(StartError) in
      try builder.build(device, on: self, with: configuration)
    }
  }

  /// Puts the functions of a device on their bus.
  /// - Throws: what is in their way. Then all of them are taken down, and the device is still admitted.
  func plug(_ functions: [Function], of device: Device) throws(StartError) {
    try trace.timing(.plugged, device) { () throws(StartError) in try plugAll(functions, of: device) }
  }

  private func plugAll(_ functions: [Function], of device: Device) throws(StartError) {
    for (index, function) in functions.enumerated() {
      do throws(StartError) {
        try plug(function, of: device.identity)
      } catch {
        for rest in functions[(index + 1)...] { rest.revoke() }
        throw error
      }
    }
    devices.finishBuilding(device.identity)
  }

  /// Puts a function on its bus and wires its INTx.
  /// - Parameter identity: of the device that it belongs to; nil for a function of the board's own.
  /// - Throws: its address is taken, or the device is gone; the function is taken down.
  func plug(_ function: Function, of identity: DeviceIdentity?) throws(StartError) {
    let pin = function.description.interruptPin
    if pin > 0 {
      function.connect(interruptLine: makeLine(BoardLayout.pin(of: PCIPlace(function), interruptPin: pin)))
    }
    do {
      try bus(of: function).add(function)
    } catch {
      function.revoke()
      throw .device(kind: "PCI", problem: "\(error.address) has a function already")
    }
    if !devices.attach(function, to: identity) {
      function.revoke()
      throw .device(kind: "PCI", problem: "the machine ends")
    }
  }

  /// Takes a device off the board at once, as if it were pulled out, and waits until its host side is down.
  /// - Returns: nil where it is gone already.
  @discardableResult
  func unplug(_ identity: DeviceIdentity) -> Device? {
    guard let (device, functions) = devices.release(identity) else { return nil }
    revoke(functions)
    return device
  }

  /// Takes functions off the board. All are refused first, so that none reaches another that is gone.
  func revoke(_ functions: [Function]) {
    for function in functions { function.refuse() }
    for function in functions { function.revoke() }
  }

  func bus(of function: Function) -> Bus { function.environment.upstream?.bus ?? rootBus }
}
