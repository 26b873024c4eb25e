import Hardware

/// Checks whether Linux can unpack or mount an initial RAM disk, by its first bytes, as the kernel does
/// (init/initramfs.c, lib/decompress.c, init/do_mounts_rd.c).
///
/// The check comes before the guest starts, because the kernel would continue without the disk and fail much later.
enum InitialRAMDisk {
  private struct Signature {
    let offset: Int
    let bytes: [UInt8]

    init(_ bytes: [UInt8], at offset: Int = 0) {
      self.bytes = bytes
      self.offset = offset
    }

    func matches(_ head: [UInt8]) -> Bool {
      offset + bytes.count <= head.count && head[offset..<offset + bytes.count].elementsEqual(bytes)
    }
  }

  private static let signatures = [
    // cpio: newc; newc with checksums.
    Signature(Array("070701".utf8)), Signature(Array("070702".utf8)),
    // gzip: the current and the old signature.
    Signature([0x1f, 0x8b]), Signature([0x1f, 0x9e]),
    // bzip2, lzma, xz, lzo, lz4 (legacy frame), zstd.
    Signature([0x42, 0x5a, 0x68]), Signature([0x5d, 0x00, 0x00]),
    Signature([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]),
    Signature([0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a]),
    Signature([0x02, 0x21, 0x4c, 0x18]), Signature([0x28, 0xb5, 0x2f, 0xfd]),
    // File systems: squashfs, romfs, cramfs, ext2.
    Signature(Array("hsqs".utf8)), Signature(Array("-rom1fs-".utf8)),
    Signature([0x45, 0x3d, 0xcd, 0x28]), Signature([0x53, 0xef], at: 0x438),
  ]

  /// The size of the smallest archive: an empty file in bzip2 format. A smaller file is no archive, even if it has a
  /// signature.
  private static let smallestSize: UInt64 = 14

  static func check(_ image: any ImageSource) throws(BootError) {
    let head = try ImageReader(image, is: .initialRAMDisk).readStart(atMost: 0x440)
    guard image.size >= smallestSize, signatures.contains(where: { $0.matches(head) }) else {
      throw .initialRAMDiskUnrecognised(size: image.size)
    }
  }
}
