import Machine

/// `-drive` and `-blockdev`.
enum DriveOption {
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    let drive = try DriveArguments.parsing(text)
    let id = drive.id?.text ?? name(of: drive.interface, in: &draft)
    draft.configuration.blockNodes.append(
      BlockNode(
        id: id, path: drive.file, readOnly: drive.readOnly, discardUnmaps: drive.discard.unmaps,
        locking: drive.locking))
    draft.blockNodeSources.append(draft.source)
    if drive.interface == .virtio {
      var device = VirtioBlockOptions()
      device.drive = id
      draft.configuration.devices.append(device)
      draft.deviceSources.append(draft.source)
    }
  }

  static func readNode(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    let node = try BlockdevArguments.parsing(text, impliedName: "driver")
    draft.configuration.blockNodes.append(node.node(over: draft.configuration.blockNodes))
    draft.blockNodeSources.append(draft.source)
  }

  /// Returns QEMU's name for a drive without an id: `none0`, `virtio1`.
  private static func name(of interface: DriveArguments.Interface, in draft: inout CommandLineDraft) -> String {
    let number = draft.unnamedDrives[interface, default: 0]
    draft.unnamedDrives[interface] = number + 1
    return interface.text + String(number)
  }
}
