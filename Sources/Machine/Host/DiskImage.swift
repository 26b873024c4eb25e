import Linux

extension BlockNode {
  /// Opens the file for a device, which has it until it goes.
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

  fileprivate func openUnlocked(memory: GuestMemory) throws(StartError) -> ScatteredFile {
    do {
      return try ScatteredFile(opening: path, readOnly: readOnly, memory: memory)
    } catch {
      throw .file(option: "-drive", error)
    }
  }
}
