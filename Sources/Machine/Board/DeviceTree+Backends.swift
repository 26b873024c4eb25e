import Synchronization

/// The backends of devices: block nodes and objects, which can also be added and removed while the machine runs.
extension DeviceTree {
  /// The block nodes, in the order in which they were added.
  var blockNodes: [BlockNode] { state.withLock { $0.admission.blockNodes } }
  /// The objects, in the order in which they were added.
  var objects: [any ObjectOptions] { state.withLock { $0.admission.objects } }

  func add(_ node: BlockNode) throws(BlockNodeProblem) {
    let result: Result<Void, BlockNodeProblem> = state.withLock { state in
      do throws(BlockNodeProblem) {
        return .success(try state.admission.add(node))
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }

  func removeNode(_ id: String) throws(BackendProblem) {
    try change { (admission) throws(BackendProblem) in try admission.removeNode(id) }
  }

  func add(_ object: any ObjectOptions, id: Identifier) throws(BackendProblem) {
    try change { (admission) throws(BackendProblem) in try admission.add(object, id: id) }
  }

  func removeObject(_ id: Identifier) throws(BackendProblem) {
    try change { (admission) throws(BackendProblem) in try admission.removeObject(id) }
  }

  private func change(_ body: (inout DeviceAdmission) throws(BackendProblem) -> Void) throws(BackendProblem) {
    let result: Result<Void, BackendProblem> = state.withLock { state in
      do throws(BackendProblem) {
        return .success(try body(&state.admission))
      } catch {
        return .failure(error)
      }
    }
    try result.get()
  }
}
