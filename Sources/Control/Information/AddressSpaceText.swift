import Machine

/// `info mtree`, in QEMU's layout (system/memory.c): each address space as a tree of regions. As in QEMU, the regions
/// that the guest places are inside a region (`pci`) of lower priority than all others.
enum AddressSpaceText {
  static func text(_ spaces: [MachineInspection.AddressSpace]) -> String { spaces.map(text).joined(separator: "\n") }

  private static func text(_ space: MachineInspection.AddressSpace) -> String {
    let fixed = space.regions.filter { !$0.isMovable }
    let movable = space.regions.filter(\.isMovable)
    // The region `pci` follows the RAM at address 0, as in QEMU.
    let bottom = fixed.prefix { $0.first == 0 && $0.isRAM }
    return "address-space: \(space.name)\n" + line(1, 0, space.last, 0, space.rootName)
      + bottom.map { line(2, $0) }.joined()
      + (movable.isEmpty ? "" : line(2, 0, space.last, -1, "pci")) + movable.map { line(3, $0) }.joined()
      + fixed.dropFirst(bottom.count).map { line(2, $0) }.joined()
  }

  private static func line(_ depth: Int, _ region: MachineInspection.AddressSpace.Region) -> String {
    line(depth, region.first, region.last, region.isMovable ? 1 : 0, region.name, region.isRAM ? "ram" : "i/o")
  }

  private static func line(
    _ depth: Int, _ first: UInt64, _ last: UInt64, _ priority: Int, _ name: String, _ type: String = "i/o"
  ) -> String {
    let range = "\(NumberFormat.digits(first, 16))-\(NumberFormat.digits(last, 16))"
    return String(repeating: "  ", count: depth) + "\(range) (prio \(priority), \(type)): \(name)\n"
  }
}
