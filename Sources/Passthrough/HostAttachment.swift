import Hardware
import VFIO
import VTd

/// The table by which the host translates a passed-through function's requests, with the kernel's object numbers
/// (<linux/iommufd.h>), for `info iommu`.
public struct HostAttachment: Hashable, Sendable {
  public enum Target: Hashable, Sendable {
    /// Detached: the host refuses every request.
    case none
    /// The page table that the kernel itself keeps for an address space (IOAS).
    case addressSpace(UInt32)
    /// A second stage that can be the parent of first stages.
    case parent(UInt32, addressSpace: UInt32?)
    /// The guest's first stage on a parent.
    case nested(UInt32, parent: UInt32, addressSpace: UInt32?)
  }

  /// A PASID whose entry of the guest is present.
  public struct PASID: Hashable, Sendable {
    public let number: UInt32
    public let binding: HostBinding
    public let target: Target

    public init(number: UInt32, binding: HostBinding, target: Target) {
      self.number = number
      self.binding = binding
      self.target = target
    }
  }

  public let source: RequesterID
  /// The translation that the guest's tables ask for requests without PASID; nil before the first binding.
  public let binding: HostBinding?
  public let target: Target
  /// In order.
  public let pasids: [PASID]
  /// The iommufd object's id.
  public let iommufd: String?

  public init(source: RequesterID, binding: HostBinding?, target: Target, pasids: [PASID] = [], iommufd: String?) {
    self.source = source
    self.binding = binding
    self.target = target
    self.pasids = pasids
    self.iommufd = iommufd
  }

  public init(_ function: HostBindings.BoundFunction) {
    let device = function.host as? HostBoundDevice
    let attached = Dictionary(
      (device?.attachedPASIDs ?? []).map { ($0.pasid, $0.target) }, uniquingKeysWith: { first, _ in first })
    self.init(
      source: function.source, binding: function.binding, target: Target(device?.attached),
      pasids: function.pasids.map { PASID(number: $0.pasid, binding: $0.binding, target: Target(attached[$0.pasid])) },
      iommufd: device?.memory.name)
  }
}

extension HostAttachment.Target {
  init(_ target: (any AttachmentTarget)?) {
    switch target {
    case let table as HardwarePageTable:
      let space = table.addressSpace?.id
      self =
        table.parent.map { .nested(table.id, parent: $0.id, addressSpace: space) }
        ?? .parent(table.id, addressSpace: space)
    case let space?: self = .addressSpace(space.id)
    case nil: self = .none
    }
  }
}
