import Glibc
import Testing

/// Compares the kernel's interface as `CLinux` declares it with the headers of the kernels that the lab boots: 6.12, and
/// the newer one of levels 2 and 3.
///
/// Two C programs print every size, offset, width and number that our header declares, one compiled with our header and
/// one with the kernel's; their outputs must be equal. The list of declarations is read from our header's text, so that
/// no addition is missed. A declaration that the kernel lacks does not compile.
@Suite struct LayoutTests {
  /// The kernel's headers that each of our headers repeats.
  private static let originals = [
    "CLinuxEvents.h": ["linux/eventpoll.h"], "CLinuxIOMMUFD.h": ["linux/iommufd.h"],
    "CLinuxKVM.h": ["linux/kvm.h"], "CLinuxNetwork.h": ["linux/ioctl.h", "linux/if_tun.h"],
    "CLinuxVFIO.h": ["linux/vfio.h"], "CLinuxVhost.h": ["linux/vhost.h"],
  ]

  /// Our header of declarations that Linux 6.12 lacks, and the kernel's headers that it repeats.
  private static let later = "CLinuxLater.h"
  private static let laterOriginals = ["linux/iommufd.h", "linux/vfio.h"]
  /// Fields that Linux 6.12 lacks, at the end of structures that it has.
  private static let laterFields: Set<String> = [
    "vfio_device_attach_iommufd_pt.pasid", "vfio_device_detach_iommufd_pt.pasid",
  ]

  /// Our names where they differ from the kernel's.
  private static let kernelNames = [
    "kvm_irq_routing_entry.msi.address_lo": "u.msi.address_lo",
    "kvm_irq_routing_entry.msi.address_hi": "u.msi.address_hi",
    "kvm_irq_routing_entry.msi.data": "u.msi.data",
    "kvm_irq_routing_entry.msi.devid": "u.msi.devid",
  ]
  private static let kernelConstants = ["NESTLING_KVM_RUN_MMIO_DATA": "offsetof(struct kvm_run, mmio.data)"]

  /// Bytes without a name in the kernel: a structure kept whole, or the rest of a union.
  private static let ownFields: Set<String> = [
    "kvm_fpu.state", "kvm_vcpu_events.state", "kvm_debugregs.state", "kvm_xcrs.state",
    "kvm_irq_routing_entry.msi.pad",
  ]
  /// Structures of which we declare only the beginning; they are smaller than the kernel's.
  private static let beginnings: Set<String> = ["kvm_run"]
  /// Structures that Linux 7 has extended at the end. It accepts the shorter ones, too.
  private static let extended: Set<String> = ["vfio_device_bind_iommufd"]

  private static let include: String = {
    let folder = #filePath.split(separator: "/").dropLast(3)
    return "/" + folder.joined(separator: "/") + "/Sources/CLinux/include"
  }()

  /// The folders of the kernels' headers: those in the variable, separated by colons, or else all that Images/kernel has
  /// left in the cache.
  static let kernelHeaders: [String] = {
    func variable(_ name: String) -> String? {
      getenv(name).map { String(cString: $0) }.flatMap { $0.isEmpty ? nil : $0 }
    }
    if let folders = variable("NESTLING_KERNEL_HEADERS") { return folders.split(separator: ":").map(String.init) }
    let base = variable("XDG_CACHE_HOME") ?? variable("HOME").map { $0 + "/.cache" }
    guard let cache = variable("NESTLING_CACHE") ?? base.map({ $0 + "/nestling" }) else { return [] }
    // While the recipe stores a kernel, the folder's name ends with .new.
    return names(in: cache).filter { $0.hasPrefix("linux-") && !$0.hasSuffix(".new") }.map { "\(cache)/\($0)/headers" }
      .filter { access($0 + "/linux/kvm.h", R_OK) == 0 }
  }()

  /// The headers of kernels from 6.19 on.
  static let laterKernelHeaders = kernelHeaders.filter { folder in
    let word = text(of: folder + "/linux/version.h").split(separator: "\n")
      .first { $0.hasPrefix("#define LINUX_VERSION_CODE ") }?.split(separator: " ").last
    return word.flatMap { Int($0) }.map { $0 >= 6 << 16 | 19 << 8 } ?? false
  }

  static let hasCompiler = HostProgram.run(["cc", "--version"])?.status == 0

  private static func names(in folder: String) -> [String] {
    guard let stream = opendir(folder) else { return [] }
    defer { closedir(stream) }
    var names: [String] = []
    while let entry = readdir(stream) {
      names.append(
        withUnsafePointer(to: &entry.pointee.d_name) {
          $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        })
    }
    return names.sorted()
  }

  private static func text(of path: String) -> String {
    let file = open(path, O_RDONLY)
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: 1 << 20)
    let count = read(file, &bytes, bytes.count)
    return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
  }

  /// Returns the program, with our names or the kernel's.
  /// - Parameter lacksLater: whether the kernel lacks the later fields.
  private static func program(
    _ header: HeaderText, includes: [String], ofKernel: Bool, lacksLater: Bool = false
  ) -> String {
    var lines = ["#include <stddef.h>", "#include <stdio.h>"] + includes.map { "#include <\($0)>" }
    lines.append("#define SIZE(s) printf(\"sizeof %s = %zu\\n\", #s, sizeof(struct s))")
    lines.append(
      "#define FIELD(s, f, m) printf(\"%s.%s at %zu, %zu bytes\\n\", #s, f, offsetof(struct s, m), "
        + "sizeof(((struct s *)0)->m))")
    lines.append("#define VALUE(n, v) printf(\"%s = 0x%llx\\n\", n, (unsigned long long)(v))")
    lines.append("int main(void) {")
    for structure in header.structures {
      let omitted = lacksLater ? ownFields.union(laterFields) : ownFields
      let hasOtherSize =
        lacksLater
        ? structure.fields.contains { laterFields.contains("\(structure.name).\($0)") }
        : extended.contains(structure.name)
      if !beginnings.contains(structure.name), !hasOtherSize { lines.append("SIZE(\(structure.name));") }
      for field in structure.fields where !omitted.contains("\(structure.name).\(field)") {
        let member = (ofKernel ? kernelNames["\(structure.name).\(field)"] : nil) ?? field
        lines.append("FIELD(\(structure.name), \"\(field)\", \(member));")
      }
    }
    for constant in header.constants {
      lines.append("VALUE(\"\(constant)\", \((ofKernel ? kernelConstants[constant] : nil) ?? constant));")
    }
    lines.append("return 0; }")
    return lines.joined(separator: "\n") + "\n"
  }

  /// Compiles and runs a program; returns the lines it printed.
  private static func lines(of source: String, includePath: String) throws -> [Substring] {
    var template = Array("/tmp/nestling-layout-XXXXXX".utf8CString)
    let folder = template.withUnsafeMutableBufferPointer { String(cString: mkdtemp($0.baseAddress!)) }
    defer {
      for name in ["program.c", "program"] { unlink("\(folder)/\(name)") }
      rmdir(folder)
    }
    let file = open("\(folder)/program.c", O_WRONLY | O_CREAT, 0o600)
    let bytes = Array(source.utf8)
    try #require(write(file, bytes, bytes.count) == bytes.count)
    close(file)
    let compiled = try #require(
      HostProgram.run(["cc", "-I", includePath, "-o", "\(folder)/program", "\(folder)/program.c"]))
    try #require(compiled.status == 0, "\(compiled.output)")
    let ran = try #require(HostProgram.run(["\(folder)/program"]))
    try #require(ran.status == 0)
    return ran.output.split(separator: "\n")
  }

  @Test(
    "every size, offset and number in our headers equals the kernel's",
    .enabled(if: hasCompiler, "no C compiler (cc) here"),
    .enabled(if: !kernelHeaders.isEmpty, "no kernel headers: Images/kernel has not been run"),
    arguments: kernelHeaders)
  func everyDeclarationIsTheKernels(_ kernel: String) throws {
    // Kernels from 6.19 on have the later declarations, too.
    let lacksLater = !Self.laterKernelHeaders.contains(kernel)
    let headers = Self.names(in: Self.include).filter {
      $0.hasPrefix("CLinux") && $0.hasSuffix(".h") && $0 != "CLinux.h" && $0 != Self.later
    }
    #expect(headers == Self.originals.keys.sorted())
    for name in headers + (lacksLater ? [] : [Self.later]) {
      let header = HeaderText(Self.text(of: "\(Self.include)/\(name)"))
      let originals = try #require(
        name == Self.later ? Self.laterOriginals : Self.originals[name],
        "add the kernel headers that \(name) repeats")
      let ours = try Self.lines(
        of: Self.program(header, includes: [name], ofKernel: false, lacksLater: lacksLater), includePath: Self.include)
      let kernels = try Self.lines(
        of: Self.program(header, includes: originals, ofKernel: true, lacksLater: lacksLater), includePath: kernel)
      #expect(ours.count == kernels.count)
      for (our, kernels) in zip(ours, kernels) { #expect(our == kernels) }
    }
  }

  /// Compares with <linux/iommufd.h> and <linux/vfio.h> of Linux 7.3, whose values are copied here: a machine may have
  /// no headers of that kernel.
  @Test(
    "the declarations that Linux 6.12 lacks have the layout of Linux 7.3",
    .enabled(if: hasCompiler, "no C compiler (cc) here"))
  func whatIsLaterIsAsItWasRead() throws {
    let header = HeaderText(Self.text(of: "\(Self.include)/\(Self.later)"))
    let lines = try Self.lines(
      of: Self.program(header, includes: [Self.later], ofKernel: false), includePath: Self.include)
    #expect(
      lines == [
        "sizeof iommu_ioas_map_file = 40", "iommu_ioas_map_file.size at 0, 4 bytes",
        "iommu_ioas_map_file.flags at 4, 4 bytes", "iommu_ioas_map_file.ioas_id at 8, 4 bytes",
        "iommu_ioas_map_file.fd at 12, 4 bytes", "iommu_ioas_map_file.start at 16, 8 bytes",
        "iommu_ioas_map_file.length at 24, 8 bytes", "iommu_ioas_map_file.iova at 32, 8 bytes",
        "sizeof vfio_region_dma_range = 16", "vfio_region_dma_range.offset at 0, 8 bytes",
        "vfio_region_dma_range.length at 8, 8 bytes", "sizeof vfio_device_feature_dma_buf = 16",
        "vfio_device_feature_dma_buf.region_index at 0, 4 bytes",
        "vfio_device_feature_dma_buf.open_flags at 4, 4 bytes", "vfio_device_feature_dma_buf.flags at 8, 4 bytes",
        "vfio_device_feature_dma_buf.nr_ranges at 12, 4 bytes", "IOMMU_IOAS_MAP_FILE = 0x3b8f",
        "IOMMU_HWPT_ALLOC_PASID = 0x8", "VFIO_DEVICE_ATTACH_PASID = 0x1", "VFIO_DEVICE_DETACH_PASID = 0x1",
        "VFIO_DEVICE_FEATURE_DMA_BUF = 0xb", "IOMMU_HW_CAP_PCI_PASID_EXEC = 0x2", "IOMMU_HW_CAP_PCI_PASID_PRIV = 0x4",
        "IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 0x8",
      ])
  }

  /// Counts the declarations in another way than the parser.
  @Test("the header parser finds every declaration") func nothingInTheHeaderIsOverlooked() {
    let text = Self.text(of: "\(Self.include)/CLinuxKVM.h")
    let header = HeaderText(text)
    let lines = text.split(separator: "\n")
    #expect(header.structures.count == lines.count { $0.hasPrefix("struct ") })
    #expect(header.structures.allSatisfy { !$0.fields.isEmpty })
    let requests = lines.count { $0.hasPrefix("NESTLING_REQUEST(") }
    let enumerators = lines.count { $0.hasPrefix("    KVM_") && $0.contains(" = ") }
    #expect(requests > 30 && enumerators > 35)
    // The additional constant is in an enumeration on a single line.
    #expect(header.constants.count == requests + enumerators + 1)
    #expect(header.constants.last == "NESTLING_KVM_RUN_MMIO_DATA")
    let exceptions = Set(Self.kernelNames.keys).union(Self.ownFields)
    let fields = Set(header.structures.flatMap { structure in structure.fields.map { "\(structure.name).\($0)" } })
    for exception in exceptions { #expect(fields.contains(exception), "\(exception) no longer exists") }
  }

  @Test("the header parser reads requests, constants and nested members") func theReaderOfHeaders() {
    let header = HeaderText(
      """
      #pragma once
      #include <stdint.h>
      #define NESTLING_REQUEST(name, number) static const unsigned int name = number
      NESTLING_REQUEST(KVM_ONE, 0xae00);
      #undef NESTLING_REQUEST
      #define KVM_SEVEN 7
      enum {
          KVM_TWO = 2,  // struct not {
          KVM_THREE = 1 << 3,
      };
      struct pair {
          uint32_t a, b;
          struct other left[2];
          union {
              struct {
                  uint8_t inner;
                  uint64_t data[16];
              } named;
              uint32_t bare;
          };
      };
      enum { OFFSET = offsetof(struct pair, a) };
      """)
    #expect(header.constants == ["KVM_ONE", "KVM_SEVEN", "KVM_TWO", "KVM_THREE", "OFFSET"])
    #expect(header.structures.map(\.name) == ["pair"])
    #expect(header.structures.first?.fields == ["a", "b", "left", "named.inner", "named.data", "bare"])
  }
}
