import Hardware

// A hostile driver of virtio-net: chains of any form on all queues, headers of packets in both directions, commands,
// features, and Bus Master Enable that is cleared at any access. `WatchedMemory` checks each access of the device,
// `FuzzNetwork` each packet that it sends. At the end, a driver without errors must lose no packet.

extension FuzzTarget {
  static let net = FuzzTarget("net") { input throws(Finding) in
    let subject = try NetworkUnderTest(&input)
    let driver = FuzzNetworkDriver(subject: subject)
    driver.start(&input)
    var steps = 0
    while !input.isEmpty, steps < 100 {
      steps += 1
      switch input.choice(16) {
      case 0, 1: driver.offerChain(&input)
      case 2, 3: driver.sendPacket(&input)
      case 4: driver.supplyBuffers(&input)
      case 5: driver.deliver(&input)
      case 6, 7: driver.command(&input)
      case 8, 9: driver.notify(&input)
      case 10: driver.writeMemory(&input)
      case 11: driver.writeField(&input)
      case 12: if input.choice(4) == 0 { driver.start(&input) }
      case 13: driver.useHost(&input)
      case 14: driver.setBusMaster(&input)
      default:
        if input.choice(2) == 0 { driver.resetQueue(&input) } else { driver.readDevice(&input) }
      }
      try subject.check()
    }
    try subject.checkTraffic(&input)
    try subject.unplug()
  }
}

extension NetworkUnderTest {
  /// Resets the device and loops packets through it, while Bus Master Enable is cleared at an access that the input
  /// selects. Each packet must arrive once.
  fileprivate func checkTraffic(_ input: inout FuzzInput) throws(Finding) {
    let form = input.byte()
    setCommand(6)
    network.clear()
    net.setLink(up: true)
    // VERSION_1, without or with EVENT_IDX and MRG_RXBUF.
    let wanted: UInt64 = 1 << 32 | (form & 1 == 0 ? 0 : 1 << 29) | (form & 2 == 0 ? 0 : 1 << 15)
    let features = wanted & offered
    try Finding.unless(negotiate(features), "features \(features) are refused")
    memory.store([UInt8](repeating: 0, count: 0x6000), at: Self.rings(0))
    var queues: [FuzzRing] = []
    for queue in 0..<2 {
      let page = Self.rings(queue)
      enable(queue, size: 8, table: page, available: page + 0x1000, used: page + 0x2000)
      guard let rings = watch.rings(of: queue) else { throw Finding(text: "queue \(queue) is not enabled") }
      queues.append(FuzzRing(memory: memory, rings: rings))
    }
    start()

    let merges = features & 1 << 15 != 0
    for index: UInt64 in 0..<8 {
      queues[0].offer(
        [.init(address: 0x2_8000 + 0x800 * index, count: merges ? 600 : 2048, isWritable: true)], first: index)
    }
    var frames: [[UInt8]] = []
    for (index, size) in [60, 1400, 100].enumerated() {
      frames.append((0..<size).map { UInt8(truncatingIfNeeded: $0 &* (index + 3)) })
      let at = 0x3_8000 + 0x800 * UInt64(index)
      memory.store([UInt8](repeating: 0, count: 12) + frames[index], at: at)
      queues[1].offer(
        [.init(address: at, count: 12), .init(address: at + 12, count: UInt64(size))], first: UInt64(2 * index))
    }
    stopBusMaster(after: Int(input.byte()))
    for _ in 0..<4 {
      notify(1)
      run()
      network.wakeDevice()
      run()
      setCommand(6)
      run()
    }
    try check()
    try Finding.unless(read(0x14, .byte) == 0xf, "status \(read(0x14, .byte)) after valid requests")
    try Finding.unless(network.sent == 3, "\(network.sent) packets sent instead of 3")
    try Finding.unless(queues[1].used.map { $0.head } == [0, 2, 4], "sent packets returned: \(queues[1].used)")
    var received: [[UInt8]] = []
    var left = 0
    for (head, length) in queues[0].used {
      let bytes = memory.copy(0x2_8000 + 0x800 * UInt64(head), count: length) ?? []
      if left == 0 {
        try Finding.unless(bytes.count >= 12, "a buffer of \(bytes.count) bytes")
        left = Int(bytes[10]) | Int(bytes[11]) << 8
        received.append(Array(bytes[12...]))
      } else {
        received[received.count - 1] += bytes
      }
      left -= 1
    }
    try Finding.unless(received == frames && left == 0, "received \(received.map(\.count)), \(left) buffers missing")
  }
}
