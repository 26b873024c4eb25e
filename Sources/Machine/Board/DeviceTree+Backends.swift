import Synchronization

/// The backends of devices: block nodes, objects and netdevs, which can also be added and removed while the machine
/// runs.
extension DeviceTree {
  /// The block nodes, in the order in which they were added.
  var blockNodes: [BlockNode] { state.withLock { $0.admission.blockNodes } }
  /// The objects, in the order in which they were added.
  var objects: [any ObjectOptions] { state.withLock { $0.admission.objects } }

  func add(_ node: BlockNode) throws(BlockNodeProblem) {
    try state.withLock { (state) throws(BlockNodeProblem) in try state.admission.add(node) }
  }

  func removeNode(_ id: String) throws(BackendProblem) {
    try state.withLock { (state) throws(BackendProblem) in try state.admission.removeNode(id) }
  }

  func add(_ object: any ObjectOptions, id: Identifier) throws(BackendProblem) {
    try state.withLock { (state) throws(BackendProblem) in try state.admission.add(object, id: id) }
  }

  func removeObject(_ id: Identifier) throws(BackendProblem) {
    try state.withLock { (state) throws(BackendProblem) in try state.admission.removeObject(id) }
  }

  func addNetdev(_ id: Identifier) throws(BackendProblem) {
    try state.withLock { (state) throws(BackendProblem) in try state.admission.addNetdev(id) }
  }

  func removeNetdev(_ name: String) throws(BackendProblem) {
    try state.withLock { (state) throws(BackendProblem) in try state.admission.removeNetdev(name) }
  }
}
