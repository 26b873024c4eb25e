import Machine

/// `-drive` and `-blockdev`.
enum DriveOption {
  static func read(_ draft: inout CommandLineDraft, _ text: String) throws(OptionProblem) {
    let drive = try DriveArguments.parsing(text)
    let id = drive.id?.text ?? freeName(drive.interface.text, among: draft.configuration.blockNodes)
    draft.configuration.blockNodes.append(
      BlockNode(id: id, path: drive.file, readOnly: drive.readOnly, discardUnmaps: drive.discard.unmaps))
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

  /// As QEMU names a drive without an id: `none0`, `virtio1`.
  private static func freeName(_ prefix: String, among nodes: [BlockNode]) -> String {
    var number = 0
    while nodes.contains(where: { $0.id == prefix + String(number) }) { number += 1 }
    return prefix + String(number)
  }
}
