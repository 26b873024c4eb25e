import Glibc
import Testing

@testable import Linux

@Suite struct MappingTests {
  @Test(arguments: [false, true])
  func `renewed anonymous memory is zero at the same address, with madvise and without`(replacing: Bool) throws {
    let size = 4 << 20
    let mapping = try Mapping(anonymous: size, alignment: 2 << 20)
    let base = unsafe mapping.base
    for offset in [0, 4096, size - 8] { unsafe base.storeBytes(of: 0x5a5a, toByteOffset: offset, as: UInt64.self) }
    if replacing { try mapping.replacePages() } else { try mapping.renew() }
    #expect(unsafe mapping.base == base)
    for offset in [0, 4096, size - 8] { #expect(unsafe base.load(fromByteOffset: offset, as: UInt64.self) == 0) }
    unsafe base.storeBytes(of: 1, toByteOffset: size - 8, as: UInt64.self)
    #expect(unsafe base.load(fromByteOffset: size - 8, as: UInt64.self) == 1)
  }
}
