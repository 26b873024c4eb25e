import PCI
import TestSupport
import Testing

/// Tests a native slot with a driver that behaves like Linux's. Devices are plugged and unplugged at each moment of the
/// driver's work.
@Suite struct SlotUnderDriverTests {
  private enum Start: CaseIterable { case empty, full }

  /// Returns a slot whose driver has started and has nothing to do.
  private func running(_ start: Start) throws -> (SlotBoard, HotplugDriver) {
    let slot = try SlotBoard(.native)
    if start == .full { slot.coldPlug() }
    let driver = slot.makeDriver()
    driver.start()
    return (slot, driver)
  }

  private func isOn(_ slot: SlotBoard, _ driver: HotplugDriver) -> Bool {
    driver.state == .on && driver.device != nil && driver.device == slot.identity && slot.control & 0x0700 == 0x0100
  }

  private func isOff(_ slot: SlotBoard, _ driver: HotplugDriver) -> Bool {
    driver.state != .blinkingOn && driver.device == nil && !slot.isOccupied && slot.control & 0x0700 == 0x0700
  }

  /// Runs a scenario once to count its moments, then once for each moment, with an action at that moment.
  /// - Parameters:
  ///   - prepare: Runs before the moments count.
  ///   - course: The scenario.
  ///   - action: Runs at the moment.
  ///   - check: Runs after both.
  private func atEachMoment(
    of prepare: () throws -> (SlotBoard, HotplugDriver), _ course: (SlotBoard, HotplugDriver) -> Void,
    do action: @escaping (SlotBoard) -> Void, check: (SlotBoard, HotplugDriver, Int) -> Void
  ) throws {
    let (slot, driver) = try prepare()
    let first = driver.moments
    course(slot, driver)
    driver.run()
    let count = driver.moments - first
    #expect(count > 5)
    // The last moment is after the scenario.
    for moment in 0...count {
      let (slot, driver) = try prepare()
      let first = driver.moments
      var isDone = false
      driver.atMoment = { now in
        slot.takeEjected()
        guard now == first + moment, !isDone else { return }
        isDone = true
        action(slot)
      }
      course(slot, driver)
      driver.run()
      if !isDone {
        isDone = true
        slot.takeEjected()
        action(slot)
        driver.run()
      }
      slot.takeEjected()
      driver.run()
      check(slot, driver, moment)
    }
  }

  /// Begins a removal from a full slot, or an insertion into an empty one.
  private func begin(_ start: Start, _ slot: SlotBoard) {
    if start == .full { #expect(slot.requestRemoval() == .asked) } else { slot.insert() }
  }

  @Test func `devices are plugged, used and removed again and again`() throws {
    let (slot, driver) = try running(.empty)
    #expect(isOff(slot, driver))
    for round in 1...4 {
      slot.insert()
      driver.run()
      #expect(isOn(slot, driver))
      #expect(driver.presses == round - 1)
      #expect(slot.requestRemoval() == .asked)
      driver.run()
      slot.takeEjected()
      driver.run()
      #expect(isOff(slot, driver))
      #expect(driver.presses == round)
      #expect(slot.ejectCount == round)
    }
    #expect(slot.refusalCount == 0)
  }

  @Test func `a device that is present at the start is used and can be removed`() throws {
    let (slot, driver) = try running(.full)
    #expect(isOn(slot, driver))
    #expect(driver.additions == 0)
    #expect(slot.requestRemoval() == .asked)
    driver.run()
    slot.takeEjected()
    #expect(isOff(slot, driver))
  }

  @Test func `a removal requested at any moment of an insertion happens, and the next device works`() throws {
    try atEachMoment(
      of: { try running(.empty) }, { slot, _ in slot.insert() },
      do: { slot in #expect([.asked, .deferred, .unpowered].contains(slot.requestRemoval())) },
      check: { slot, driver, moment in
        #expect(isOff(slot, driver), "moment \(moment)")
        slot.insert()
        driver.run()
        #expect(isOn(slot, driver), "moment \(moment)")
        #expect(slot.ejectCount <= 1)
      })
  }

  @Test func `repeating a removal request at any moment neither presses the button twice nor cancels it`() throws {
    try atEachMoment(
      of: { try running(.full) }, { slot, _ in #expect(slot.requestRemoval() == .asked) },
      do: { slot in if slot.isOccupied { #expect([.busy, .unpowered].contains(slot.port.requestRemoval())) } },
      check: { slot, driver, moment in
        #expect(isOff(slot, driver), "moment \(moment)")
        #expect(driver.presses == 1)
        #expect(slot.ejectCount == 1)
        #expect(slot.refusalCount == 0)
      })
  }

  @Test func `a removal requested at any moment of the driver's start happens`() throws {
    for start in Start.allCases {
      try atEachMoment(
        of: {
          let slot = try SlotBoard(.native)
          if start == .full { slot.coldPlug() } else { slot.insert() }
          return (slot, slot.makeDriver())
        }, { _, driver in driver.start() },
        do: { slot in #expect([.asked, .deferred, .unpowered].contains(slot.requestRemoval())) },
        check: { slot, driver, moment in
          #expect(isOff(slot, driver), "\(start), moment \(moment)")
          slot.insert()
          driver.run()
          #expect(isOn(slot, driver), "\(start), moment \(moment)")
        })
    }
  }

  @Test func `a device plugged at any moment of the driver's start stays`() throws {
    try atEachMoment(
      of: {
        let slot = try SlotBoard(.native)
        return (slot, slot.makeDriver())
      }, { _, driver in driver.start() }, do: { $0.insert() },
      check: { slot, driver, moment in
        #expect(isOn(slot, driver), "moment \(moment)")
        #expect(slot.ejectCount == 0)
      })
  }

  @Test func `after surprise removal at any moment the device is gone, and the next one works`() throws {
    for start in Start.allCases {
      try atEachMoment(
        of: { try running(start) }, { slot, _ in begin(start, slot) },
        do: { $0.pullOut() },
        check: { slot, driver, moment in
          #expect(driver.device == nil && slot.control & 0x0700 == 0x0700, "\(start), moment \(moment)")
          slot.insert()
          driver.run()
          #expect(isOn(slot, driver), "\(start), moment \(moment)")
        })
    }
  }

  @Test func `a device that replaces another at any moment stays`() throws {
    for start in Start.allCases {
      var ejects = 0
      try atEachMoment(
        of: { try running(start) }, { slot, _ in begin(start, slot) },
        do: { slot in
          slot.pullOut()
          slot.insert()
          ejects = slot.ejectCount
        },
        check: { slot, driver, moment in
          #expect(isOn(slot, driver), "\(start), moment \(moment)")
          #expect(slot.ejectCount == ejects, "\(start), moment \(moment)")
        })
    }
  }

  @Test func `software can refuse a removal, and a later request works`() throws {
    let (slot, driver) = try running(.full)
    #expect(slot.requestRemoval() == .asked)
    slot.status = 0xffff
    slot.control = slot.control & ~0x0300 | 0x0200
    #expect(slot.port.requestRemoval() == .busy)
    slot.control = slot.control & ~0x0300 | 0x0100
    #expect(slot.refusalCount == 1)
    #expect(slot.port.requestRemoval() == .asked)
    _ = driver
  }
}
