import Linux

extension BlockNode {
  /// Opens the file for a device and locks it until the device is gone.
  func open(memory: GuestMemory) throws(StartError) -> ScatteredFile {
    let file = try openUnlocked(memory: memory)
    guard locking != .off else { return file }
    do {
      try file.lock()
    } catch .unavailable where locking == .auto {
    } catch .unavailable(let error), .system(let error) {
      throw .file(option: "-drive", error)
    } catch {
      throw .imageInUse(path: path, error)
    }
    return file
  }

  /// - Parameter readOnly: nil for the node's own setting.
  func openUnlocked(memory: GuestMemory, readOnly: Bool? = nil) throws(StartError) -> ScatteredFile {
    let readOnly = readOnly ?? self.readOnly
    do {
      if let file { return try ScatteredFile(file, named: path, readOnly: readOnly, memory: memory) }
      return try ScatteredFile(opening: path, readOnly: readOnly, memory: memory)
    } catch {
      throw .file(option: "-drive", error)
    }
  }
}

extension MachineConfiguration {
  /// Opens and closes the files that options name and no device uses, so that a wrong name is found at the start. It
  /// does not lock them: an image that no device uses must not exclude other programs.
  func checkUnusedFiles(memory: GuestMemory) throws(StartError) {
    let used = Set(devices.flatMap { $0.nodes.map(\.id) } + blockNodes.compactMap(\.underlying))
    for node in blockNodes where !used.contains(node.id) { _ = try node.openUnlocked(memory: memory) }
    let usedObjects = Set(devices.flatMap { $0.objects.map(\.id) })
    for case let object as any EntropyObjectOptions in objects {
      guard let id = object.id, !usedObjects.contains(id), case .file(let path) = object.entropySource else {
        continue
      }
      _ = try mapError(try FileEntropy(opening: path)) { StartError.file(option: "-object rng-random", $0) }
    }
  }
}
