import Hardware

/// One boot in progress: the memory that is still free, and the writes that all formats share.
struct BootLoading {
  let request: BootRequest
  let memory: any PhysicalMemory
  var plan: MemoryPlan

  /// The range for boot data: below 1 MiB, and above the memory that a BIOS uses and that Linux uses to start CPUs.
  private static let dataRange: Range<UInt64> = 0x7000..<GuestMemoryLayout.firstMiB
  private static let pageSize: UInt64 = 4096

  init(request: BootRequest, memory: any PhysicalMemory) {
    self.request = request
    self.memory = memory
    let low = request.layout.regions.filter { $0.type == .memory && $0.range.upperBound <= GuestMemoryLayout.fourGiB }
    plan = MemoryPlan(free: low.map(\.range))
  }

  var kernelReader: ImageReader { ImageReader(request.kernel.image, is: .kernel) }

  // MARK: Room

  /// Claims the memory of the kernel.
  mutating func claimKernel(_ address: UInt64, size: UInt64) throws(BootError) {
    let (end, overflow) = address.addingReportingOverflow(size)
    guard !overflow, plan.claim(address..<end) else {
      throw .kernelDoesNotFit(address: address, size: size, memoryEnd: request.layout.lowRAMEnd)
    }
  }

  /// Claims memory for the initrd: page aligned, as high as possible.
  /// - Parameter limit: the initrd must end at or below this address.
  /// - Returns: nil if there is no initrd.
  mutating func claimInitialRAMDisk(below limit: UInt64) throws(BootError) -> Range<UInt64>? {
    guard let size = request.initialRAMDisk?.image.size else { return nil }
    guard let start = plan.takeHighest(size, alignment: Self.pageSize, below: limit) else {
      throw .initialRAMDiskDoesNotFit(
        size: size, available: plan.largest(alignment: Self.pageSize, below: limit))
    }
    return start..<start + size
  }

  /// Claims memory for boot data, as low as possible.
  mutating func claim(_ content: BootError.Content, size: Int, alignment: UInt64 = 16) throws(BootError) -> UInt64 {
    guard let address = plan.takeLowest(UInt64(size), alignment: alignment, within: Self.dataRange) else {
      throw .noRoom(content, size: UInt64(size))
    }
    return address
  }

  // MARK: Writes

  func write(_ bytes: [UInt8], to address: UInt64) throws(BootError) {
    guard memory.write(RawSpan(_elements: bytes.span), to: address) else {
      throw .notMemory(address: address, size: UInt64(bytes.count))
    }
  }

  func load(_ reader: ImageReader, at offset: UInt64, count: UInt64, to address: UInt64) throws(BootError) {
    if count == 0 { return }
    guard memory.contains(address, count: count) else { throw .notMemory(address: address, size: count) }
    do { try reader.image.load(at: offset, count: count, to: address) } catch { throw .readFailed(reader.file, error) }
  }

  func loadInitialRAMDisk(to range: Range<UInt64>?) throws(BootError) {
    guard let range, let file = request.initialRAMDisk else { return }
    try load(
      ImageReader(file.image, is: .initialRAMDisk), at: 0, count: UInt64(range.count), to: range.lowerBound)
  }

  /// Fills memory with zeros. The memory may have other content, because a reset loads the kernel again.
  func clear(_ address: UInt64, count: UInt64) throws(BootError) {
    let zeros = [UInt8](repeating: 0, count: 1 << 16)
    var address = address
    var remaining = count
    while remaining >= UInt64(zeros.count) {
      try write(zeros, to: address)
      address += UInt64(zeros.count)
      remaining -= UInt64(zeros.count)
    }
    if remaining > 0 { try write([UInt8](repeating: 0, count: Int(remaining)), to: address) }
  }
}

/// Bytes of a file and the memory for them. The rest of the memory is filled with zeros.
struct LoadSegment: Hashable {
  var fileOffset: UInt64
  var fileSize: UInt64
  var address: UInt64
  var memorySize: UInt64

  /// The memory's range. The image's parser has checked that its end does not overflow.
  var range: Range<UInt64> { address..<address + memorySize }
}

extension BootLoading {
  /// Claims the memory of each segment.
  mutating func claim(_ segments: [LoadSegment]) throws(BootError) {
    let whole = plan
    for (index, segment) in segments.enumerated() where !plan.claim(segment.range) {
      // If this range was free before the first segment, another segment has claimed a part of it.
      var fresh = whole
      if fresh.claim(segment.range) {
        throw .segmentsOverlap(index: index, address: segment.address, memorySize: segment.memorySize)
      }
      throw .kernelDoesNotFit(
        address: segment.address, size: segment.memorySize, memoryEnd: request.layout.lowRAMEnd)
    }
  }

  func load(_ segments: [LoadSegment]) throws(BootError) {
    for segment in segments {
      try load(kernelReader, at: segment.fileOffset, count: segment.fileSize, to: segment.address)
      try clear(segment.address + segment.fileSize, count: segment.memorySize - segment.fileSize)
    }
  }
}
