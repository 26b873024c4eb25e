import Devices

/// The options that every virtio device on PCI has (virtio 1.2, sections 2.2 and 6): a part of a device type, not a
/// type itself.
public struct VirtioPCIOptions: Hashable, Sendable {
  public var function = PCIFunctionOptions()
  /// VIRTIO_F_ACCESS_PLATFORM: the device's DMA goes through the IOMMU.
  public var accessPlatform = false
  /// VIRTIO_F_EVENT_IDX.
  public var eventIndex = true

  public init() {}

  private static let modernOnly = "devices are virtio 1.x only"

  static let properties: [Property<Self>] =
    PCIFunctionOptions.properties.map { $0.within(\.function) } + [
      Property(
        "iommu_platform", \.accessPlatform, help: "DMA goes through the IOMMU (VIRTIO_F_ACCESS_PLATFORM)"),
      Property("event_idx", \.eventIndex, help: "Event index (VIRTIO_F_EVENT_IDX)"),
      Property(
        "disable-legacy", settled: OnOffAuto.on, orAlso: [.auto], because: modernOnly,
        help: "No legacy interface (always on)"),
      Property("disable-modern", settled: false, because: modernOnly, help: "No virtio 1.x interface (always off)"),
    ]
}

extension VirtioPCIOptions {
  var transport: VirtioOptions {
    var options = VirtioOptions()
    options.iommuPlatform = accessPlatform
    options.eventIndex = eventIndex
    return options
  }
}
