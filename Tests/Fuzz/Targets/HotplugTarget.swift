#if TESTABLE
  import Hardware
  import PCI

  @testable import Machine

  // Devices, block nodes and objects come and go as the input decides, while the guest writes to the ports, the ACPI
  // controller and the devices, and is reset.

  extension FuzzTarget {
    /// Targets that need the machine's internals.
    static let ofTheMachine = [hotplug, vhostUser]

    static let hotplug = FuzzTarget("hotplug") { input throws(Finding) in
      let form = input.byte()
      var unit: IntelIOMMUOptions?
      if form & 2 != 0 {
        unit = IntelIOMMUOptions()
        unit?.unit.scalableMode = form & 4 != 0
      }
      let machine: MachineUnderTest
      do {
        machine = try MachineUnderTest(way: form & 1 == 0 ? .acpi : .native, unit: unit)
      } catch {
        throw Finding(text: "the machine cannot be created: \(error)")
      }
      if form & 8 == 0 { machine.start() }
      let guest = FuzzGuest(machine: machine)
      let person = FuzzPerson(machine: machine)
      var steps = 0
      while !input.isEmpty, steps < 120, !machine.hasEnded {
        steps += 1
        let step = input.byte()
        switch step & 15 {
        case 0, 1, 2: person.addDevice(&input)
        case 3, 4: person.removeDevice(&input)
        case 5: person.changeBackends(&input)
        case 6: guest.writePort(&input)
        case 7: guest.writeSlot(&input)
        case 8: guest.useController(&input)
        case 9: guest.ejectOrReport(&input)
        case 10: guest.accessRegion(&input)
        case 11: guest.enable(&input)
        case 12: guest.transfer(&input)
        case 13: guest.configurationWrite(&input)
        case 14: person.lookAway(&input)
        default: try pass(machine, guest, person, &input)
        }
        // In half of the steps, the machine does all pending work. In the others, it does one piece of work or handles
        // one event.
        if step & 0x30 == 0 {
          _ = machine.work.run()
        } else if step & 0x30 == 0x10 {
          _ = try machine.act()
        } else {
          try machine.settle()
        }
        try machine.check()
      }
      try machine.finish()
    }

    private static func pass(
      _ machine: MachineUnderTest, _ guest: FuzzGuest, _ person: FuzzPerson, _ input: inout FuzzInput
    ) throws(Finding) {
      switch input.choice(6) {
      case 0: machine.board.events.post(.hostReset)
      case 1: guest.reset()
      case 2: machine.start()
      case 3: _ = machine.clock.advance(to: machine.clock.now + UInt64(input.byte()) * 50_000_000)
      case 4: person.takeBack(&input)
      default:
        machine.workers.run()
        guest.writeChip(&input)
      }
    }
  }

  /// Requests of monitors and of the host.
  private struct FuzzPerson {
    let machine: MachineUnderTest

    private static let types: [any DeviceOptions.Type] = [
      EduOptions.self, VirtioBlockOptions.self, VirtioRNGOptions.self, DMAEngineOptions.self,
      IOMMUTestDeviceOptions.self, PCIERootPortOptions.self, EduOptions.self, VirtioBlockOptions.self,
    ]

    func addDevice(_ input: inout FuzzInput) {
      let form = input.byte()
      let type = Self.types[Int(form & 7)]
      var assignments: [PropertyAssignment] = []
      func set(_ name: String, _ value: String) { assignments.append(PropertyAssignment(name: name, value: value)) }
      let number = form >> 3 & 7
      if number < 7 { set("id", "d\(number)") }
      let place = input.byte()
      if place & 0x1c != 0 {
        // Often function 0.
        let function = place & 0x10 == 0 ? 0 : place >> 2 & 3
        set("addr", "\(place & 0xe0 == 0xe0 ? 1 : 0).\(function)")
        if place & 0x20 != 0 { set("multifunction", "on") }
      }
      if type is VirtioBlockOptions.Type {
        set("drive", "n\(form >> 6)")
        if place & 0x40 != 0 { set("num-queues", "2") }
      }
      if type is VirtioRNGOptions.Type, form & 0x40 != 0 { set("rng", "o\(form >> 7)") }
      let bus = place & 3 == 3 && place & 0x80 != 0 ? "fixed" : MachineUnderTest.ports[Int(place & 3) % 3]
      machine.ask(.addDevice(DeviceDescription(type, bus: bus, assignments)))
    }

    func removeDevice(_ input: inout FuzzInput) {
      let form = input.byte()
      let devices = machine.board.devices.all
      let name =
        switch form & 0xf {
        case 0..<7: "d\(form & 0xf)"
        case 15: "stays"
        case 14: "rp0"
        default: devices.isEmpty ? "" : devices[Int(form >> 4) % devices.count].path
        }
      machine.ask(.removeDevice(name, isSurprise: form & 0x80 != 0))
    }

    func changeBackends(_ input: inout FuzzInput) {
      let form = input.byte()
      let number = form >> 1 & 3
      guard let id = try? Identifier(text: "o\(number & 1)") else { return }
      switch (form & 1, form >> 3 & 3) {
      case (0, 0):
        var object = RNGBuiltinOptions()
        object.id = id
        machine.ask(.addObject(object))
      case (0, let kind):
        machine.ask(
          .addNode(
            BlockNode(
              id: "n\(number)", path: FuzzImage.path, readOnly: form & 0x20 != 0,
              locking: form & 0x40 == 0 ? .off : .auto, underlying: kind == 3 ? "n\(form >> 6)" : nil,
              driver: kind == 3 ? .raw : .file)))
      case (_, 0): machine.ask(.removeObject(id))
      default: machine.ask(.removeNode("n\(number)"))
      }
    }

    /// Lets one part of the machine do its work while the others wait.
    func lookAway(_ input: inout FuzzInput) {
      switch input.choice(4) {
      case 0: _ = machine.work.run()
      case 1: _ = machine.work.run() && machine.work.run()
      case 2: machine.workers.run()
      default: machine.board.pressPowerButton()
      }
    }

    /// The host requests a device back.
    func takeBack(_ input: inout FuzzInput) {
      let devices = machine.board.devices.all.filter { $0.place?.port != nil && $0.id?.text != "stays" }
      let patience = UInt32(input.byte()) * 10
      guard !devices.isEmpty else { return }
      machine.board.events.post(.hostRequest(input.pick(devices).identity, patience: patience))
    }
  }
#else
  extension FuzzTarget {
    static let ofTheMachine: [FuzzTarget] = []
  }
#endif
