import CLinux
import Glibc
import Linux

/// A region of a VFIO device: a BAR, the ROM, or configuration space (VFIO_DEVICE_GET_REGION_INFO).
public struct VFIORegion: Hashable, Sendable {
  /// A part of the region that may be mapped.
  public struct Area: Hashable, Sendable {
    public var offset: UInt64
    public var size: UInt64

    public init(offset: UInt64, size: UInt64) {
      self.offset = offset
      self.size = size
    }
  }

  /// VFIO_PCI_*_REGION_INDEX: 0 to 5 for the BARs, 6 for the ROM, 7 for configuration space.
  public let index: UInt32
  /// The size in bytes; 0 if the device has no such region.
  public let size: UInt64
  /// The region's offset in the device file.
  public let offset: UInt64
  public let isReadable: Bool
  public let isWritable: Bool
  /// The parts that may be mapped: all, those that the kernel lists, or none.
  public let mappableAreas: [Area]
  /// Whether the page of the MSI-X table may be mapped, too.
  public let mapsMSIXTable: Bool
}

extension VFIODevice {
  public func region(_ index: UInt32) throws(SystemError) -> VFIORegion {
    var room = 0
    while true {
      var request = VariableRequest(vfio_region_info(), room: room)
      request.header.argsz = UInt32(clamping: request.count)
      request.header.index = index
      try file.request("VFIO_DEVICE_GET_REGION_INFO", VFIO_DEVICE_GET_REGION_INFO, &request)
      // If there are capabilities, the kernel states how much room they need and expects a second request.
      let wanted = Int(request.header.argsz)
      if wanted > request.count, wanted <= 1 << 20 {
        room = wanted - type(of: request).headerSize
        continue
      }
      return Self.region(from: request)
    }
  }

  private static func region(from request: VariableRequest<vfio_region_info>) -> VFIORegion {
    let info = request.header
    var areas: [VFIORegion.Area] = []
    if info.flags & UInt32(VFIO_REGION_INFO_FLAG_MMAP) != 0, info.size > 0 {
      areas = [VFIORegion.Area(offset: 0, size: info.size)]
    }
    var mapsMSIXTable = false
    if info.flags & UInt32(VFIO_REGION_INFO_FLAG_CAPS) != 0 {
      for (offset, capability) in capabilities(of: request) {
        switch Int(capability.id) {
        case Int(VFIO_REGION_INFO_CAP_SPARSE_MMAP): areas = sparseAreas(of: request, at: offset)
        case Int(VFIO_REGION_INFO_CAP_MSIX_MAPPABLE): mapsMSIXTable = true
        default: break
        }
      }
    }
    return VFIORegion(
      index: info.index, size: info.size, offset: info.offset,
      isReadable: info.flags & UInt32(VFIO_REGION_INFO_FLAG_READ) != 0,
      isWritable: info.flags & UInt32(VFIO_REGION_INFO_FLAG_WRITE) != 0, mappableAreas: areas,
      mapsMSIXTable: mapsMSIXTable)
  }

  /// Returns the kernel's list of extra information about the region (`vfio_info_cap_header`), each with its offset in
  /// the answer. The list ends at offset zero; a limit of 64 guards against a loop.
  private static func capabilities(
    of request: VariableRequest<vfio_region_info>
  ) -> [(offset: Int, header: vfio_info_cap_header)] {
    var found: [(offset: Int, header: vfio_info_cap_header)] = []
    var offset = Int(request.header.cap_offset)
    while offset > 0, found.count < 64, let header = request.load(vfio_info_cap_header.self, at: offset) {
      found.append((offset, header))
      offset = Int(header.next)
    }
    return found
  }

  private static func sparseAreas(
    of request: VariableRequest<vfio_region_info>, at offset: Int
  ) -> [VFIORegion.Area] {
    typealias Capability = vfio_region_info_cap_sparse_mmap
    guard let capability = request.load(Capability.self, at: offset) else { return [] }
    let first = offset + MemoryLayout<Capability>.size
    let size = MemoryLayout<vfio_region_sparse_mmap_area>.size
    let count = min(Int(capability.nr_areas), request.count / size)
    return (0..<count).compactMap { index in
      request.load(vfio_region_sparse_mmap_area.self, at: first + size * index)
        .map { VFIORegion.Area(offset: $0.offset, size: $0.size) }
    }
  }

  /// Exports a part of a region as a dma-buf (VFIO_DEVICE_FEATURE_DMA_BUF), which iommufd can map for requests from one
  /// device to another.
  /// - Parameter area: page-aligned.
  public func dmaBuffer(of region: VFIORegion, _ area: VFIORegion.Area) throws(SystemError) -> KernelFile {
    typealias Feature = vfio_device_feature_dma_buf
    let first = MemoryLayout<vfio_device_feature>.size
    let second = first + MemoryLayout<Feature>.size
    var request = VariableRequest(
      vfio_device_feature(), room: MemoryLayout<Feature>.size + MemoryLayout<vfio_region_dma_range>.size)
    request.header.argsz = UInt32(clamping: request.count)
    request.header.flags = UInt32(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF)
    request.store(
      Feature(region_index: region.index, open_flags: UInt32(O_RDWR | O_CLOEXEC), flags: 0, nr_ranges: 1), at: first)
    request.store(vfio_region_dma_range(offset: area.offset, length: area.size), at: second)
    let answer = try file.request("VFIO_DEVICE_FEATURE_DMA_BUF", VFIO_DEVICE_FEATURE, &request)
    return KernelFile(owning: answer, calls: file.calls)
  }

  // MARK: Accesses

  /// Reads through the kernel. Widths of 1, 2, 4 and (in recent kernels) 8 bytes are a single access to the device.
  /// - Returns: nil if the width is not in 1...8, if the range is outside the region, or if the kernel does not read
  ///   all bytes, for example because the device is gone.
  public func read(_ region: VFIORegion, offset: UInt64, width: Int) -> UInt64? {
    guard (1...8).contains(width), offset <= region.size, UInt64(width) <= region.size - offset else { return nil }
    var value: UInt64 = 0
    // SAFETY: `width` is at most eight, the size of the value. x86 is little-endian.
    let answer = unsafe withUnsafeMutableBytes(of: &value) { buffer in
      unsafe file.calls.read(
        file.descriptor, at: region.offset &+ offset, into: UnsafeMutableRawBufferPointer(rebasing: buffer[..<width]))
    }
    return answer == width ? value : nil
  }

  /// Reads the region from its start until a read fails.
  /// - Parameter limit: in bytes.
  public func contents(of region: VFIORegion, limit: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: min(Int(clamping: region.size), max(limit, 0)))
    var count = 0
    while count < bytes.count {
      // SAFETY: the range is the rest of the array.
      let answer = unsafe bytes.withUnsafeMutableBytes { buffer in
        unsafe file.calls.read(
          file.descriptor, at: region.offset &+ UInt64(count),
          into: UnsafeMutableRawBufferPointer(rebasing: buffer[count...]))
      }
      guard answer > 0 else { break }
      count += min(answer, bytes.count - count)
    }
    return Array(bytes[..<count])
  }

  /// - Returns: whether the width is in 1...8, the range is in the region, and the kernel wrote all bytes.
  @discardableResult
  public func write(_ region: VFIORegion, offset: UInt64, width: Int, value: UInt64) -> Bool {
    guard (1...8).contains(width), offset <= region.size, UInt64(width) <= region.size - offset else { return false }
    var value = value
    // SAFETY: `width` is at most eight, the size of the value.
    let answer = unsafe withUnsafeBytes(of: &value) { buffer in
      unsafe file.calls.write(
        file.descriptor, at: region.offset &+ offset, from: UnsafeRawBufferPointer(rebasing: buffer[..<width]))
    }
    return answer == width
  }
}

/// A part of a region, mapped into this process for the guest to access without an exit.
public final class RegionMapping: Sendable {
  public let area: VFIORegion.Area
  /// The address of the mapping in this process.
  public let hostAddress: UInt64
  /// Keeps the device open as long as its memory is mapped.
  private let file: KernelFile

  public init(_ area: VFIORegion.Area, of region: VFIORegion, device: VFIODevice) throws(SystemError) {
    let answer = device.file.calls.map(
      device.file.descriptor, at: region.offset &+ area.offset, size: Int(clamping: area.size),
      writable: region.isWritable)
    guard answer >= 0 || answer < -4095 else {
      throw SystemError("mmap", "region \(region.index) of \(device.file.name)", code: Int32(-answer))
    }
    self.area = area
    hostAddress = UInt64(UInt(bitPattern: answer))
    file = device.file
  }

  deinit { file.calls.unmap(Int(truncatingIfNeeded: hostAddress), size: Int(clamping: area.size)) }
}
