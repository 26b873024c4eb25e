import Devices
import Hardware
import PCI

/// Adds devices to the board and removes them, at the start and later.
///
/// Adding takes three steps. Admission checks that the device fits. Building makes its functions and may block on the
/// host. Plugging puts the functions on their bus. Removal takes three steps, too. The device leaves its bus at once.
/// Its host resources are released, which may block on the host. Then its id, address and backends are free.
extension Board {
  /// Admits a device, builds it and plugs it in, in one call. Called at the start, before the guest runs.
  /// - Throws: the reason why the device does not fit, or the host's error. After an error, nothing of the device
  ///   remains.
  @discardableResult
  func add(
    _ options: any DeviceOptions, with configuration: MachineConfiguration
  ) throws(StartError) -> Device {
    let device = try mapError(try devices.admit(options), StartError.refused)
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

  /// Makes the functions of an admitted device. None of them is on a bus yet.
  ///
  /// This may block on the host: it opens files and pins RAM.
  func build(
    _ device: Device, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function] {
    // Every device type but the IOMMU is a `BoardDevice`. IOMMUs are made with the board.
    guard let builder = device.options as? any BoardDevice else { return [] }
    return try trace.timing(.built, device) { () throws(StartError) in
      try builder.build(device, on: self, with: configuration)
    }
  }

  /// Puts the functions of a device on their bus.
  /// - Throws: if an address is taken or the device is gone. The functions that did not reach the bus have then been
  ///   revoked. The caller revokes the other functions and releases the device.
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
  /// - Parameter identity: the device that the function belongs to; nil for a function of the board itself.
  /// - Throws: if its address is taken or its device is gone. In that case the function has been revoked.
  func plug(_ function: Function, of identity: DeviceIdentity?) throws(StartError) {
    let pin = function.description.interruptPin
    if pin > 0 {
      function.connect(interruptLine: makeLine(BoardLayout.pin(of: PCIPlace(function), interruptPin: pin)))
    }
    do {
      try bus(of: function).add(function)
    } catch {
      function.revoke()
      throw .addressInUse(error.address)
    }
    if !devices.attach(function, to: identity) {
      function.revoke()
      throw .ended
    }
  }

  /// Removes a device from the board at once, as a surprise removal does, and waits until its host resources are
  /// released.
  /// - Returns: nil if the device is gone already.
  @discardableResult
  func unplug(_ identity: DeviceIdentity) -> Device? {
    guard let (device, functions) = devices.release(identity) else { return nil }
    revoke(functions)
    return device
  }

  /// Removes functions from the board. First cuts all of them off from the guest, so that no function can reach another
  /// one that is already gone.
  func revoke(_ functions: [Function]) {
    for function in functions { function.refuse() }
    for function in functions { function.revoke() }
  }

  func bus(of function: Function) -> Bus { function.environment.upstream?.bus ?? rootBus }
}

/// A device type that can be built onto a board: every type in `DeviceTypes` but the IOMMU, which is made with the
/// board.
protocol BoardDevice {
  /// Makes the device's functions, which the board then plugs in. May block on the host.
  /// - Throws: the reason why the functions cannot be made. After an error, nothing of them remains.
  func build(
    _ device: Device, on board: Board, with configuration: MachineConfiguration
  ) throws(StartError) -> [Function]
}
