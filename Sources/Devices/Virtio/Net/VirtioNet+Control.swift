import Hardware

/// The control queue: virtio 1.2, section 5.1.6.5.
extension VirtioNet {
  /// VIRTIO_NET_OK, VIRTIO_NET_ERR
  private enum Answer: UInt8 {
    case ok = 0
    case error = 1
  }

  /// Serves the control queue.
  func serveControl(_ queue: inout VirtQueue) throws(VirtQueueError) {
    try queue.drain { queue throws(VirtQueueError) in
      let head = queue.chain.head
      let size = queue.chain.readable.remaining
      guard size >= UInt64(NetworkCommand.headerSize), queue.chain.writable.remaining > 0 else { throw .request }
      do throws(DMAError) {
        var isDone = false
        if size <= UInt64(NetworkCommand.sizeLimit) { isDone = perform(try queue.takeBytes(Int(size)), &queue) }
        _ = try queue.put([(isDone ? Answer.ok : .error).rawValue])
      } catch { throw .memory(error) }
      try queue.complete(head: head, written: 1)
    }
  }

  /// Performs the command at the front of the queue's bytes.
  /// - Returns: whether the command is valid.
  private func perform(_ count: Int, _ queue: inout VirtQueue) -> Bool {
    guard let command = NetworkCommand(queue.bytes, count: count),
      queue.features.isSuperset(of: command.requiredFeatures)
    else { return false }
    let outcome = update { perform(command, &$0) }
    // A queue that becomes active may have ignored its wake-ups.
    var wakes = outcome.dropsPackets
    if case .setPairs = command { wakes = true }
    if wakes { wakeQueues(0..<activePairs) }
    return outcome.answer
  }

  /// - Returns: false if the command's value is not possible now.
  private func perform(_ command: NetworkCommand, _ settings: inout Settings) -> Bool {
    switch command {
    case .setMode(let mode, true): settings.filter.modes.insert(mode)
    case .setMode(let mode, false): settings.filter.modes.remove(mode)
    case .setTables(let unicast, let multicast):
      settings.filter.unicast = unicast
      settings.filter.multicast = multicast
    case .setAddress(let address): settings.filter.address = address
    case .setVLAN(let vlan, let isAccepted): settings.filter.setVLAN(vlan, isAccepted)
    case .acknowledgeAnnouncement:
      guard settings.announces else { return false }
      settings.announces = false
    case .setPairs(let count):
      guard (1...pairCount).contains(Int(count)) else { return false }
      settings.activePairs = Int(count)
      backend.setActivePairs(Int(count))
    case .setOffloads(let features):
      guard features.isSubset(of: settings.features), features.isSubset(of: NetworkOffloads.allReceiveFeatures) else {
        return false
      }
      // All others need the checksum, and have no effect without it.
      settings.offloads = features.contains(.netGuestChecksum) ? NetworkOffloads(receivedWith: features) : []
      backend.setOffloads(settings.offloads)
    }
    return true
  }
}
