import Hardware
import VTd

/// An invalidation that software requests: a queue descriptor or a register command.
struct SequenceInvalidation {
  /// What is invalidated.
  let invalidation: Invalidation
  /// The descriptor's low and high 64 bits.
  let descriptor: (UInt64, UInt64)
  /// The 64-bit register and its value, with IVA for pages; nil if no register can do it (VT-d 6.5.1).
  let command: (offset: Int, value: UInt64, address: UInt64?)?

  /// The tags of a cached entry.
  struct Aim {
    var domain: UInt16
    var pasid: UInt32
    var source: UInt16
  }

  /// Creates an invalidation of any granularity that fits the sequence's tables.
  /// - Parameter aim: the tags that the invalidation usually names; nil for any tags.
  init(_ choices: inout some Choices, isScalable: Bool, address: UInt64, at aim: Aim? = nil) {
    var domain = choices.pick(SequenceTables.domains)
    var pasid = choices.pick(SequenceTables.pasids)
    var source = choices.pick(SequenceTables.sources)
    if let aim, choices.choice(8) != 0 { (domain, pasid, source) = (aim.domain, aim.pasid, aim.source) }
    let did = UInt64(domain) << 16
    let pages: UInt64 = choices.pick([0, 0, 0, 1, 3, 9, 10, 18])
    let start = address & ~UInt64(0xfff)
    let range = PageRange(address: start, addressMask: Int(pages))
    let hint = choices.choice(2) << 6
    switch choices.choice(isScalable ? 14 : 8) {
    case 0:
      invalidation = .allContexts
      descriptor = (0x11, 0)
      command = (0x28, 1 << 63 | 1 << 61, nil)
    case 1:
      invalidation = .contextsOfDomain(domain)
      descriptor = (0x21 | did, 0)
      command = (0x28, 1 << 63 | 2 << 61 | UInt64(domain), nil)
    case 2:
      let mask: UInt64 = choices.pick([0, 0, 1, 2, 3])
      invalidation = .contextsOfDevice(RequesterID(rawValue: source), FunctionMask(rawValue: UInt8(mask)))
      descriptor = (0x31 | did | UInt64(source) << 32 | mask << 48, 0)
      command = (0x28, 1 << 63 | 3 << 61 | mask << 32 | UInt64(source) << 16 | UInt64(domain), nil)
    case 3:
      invalidation = .allTranslations
      descriptor = (0x12, 0)
      command = (0xf8, 1 << 63 | 1 << 60, nil)
    case 4:
      invalidation = .translationsOfDomain(domain)
      descriptor = (0x22 | did, 0)
      command = (0xf8, 1 << 63 | 2 << 60 | UInt64(domain) << 32, nil)
    case 5..<8:
      invalidation = .pagesOfDomain(domain, range, leafOnly: hint != 0)
      descriptor = (0x32 | did, start | hint | pages)
      command = (0xf8, 1 << 63 | 3 << 60 | UInt64(domain) << 32, start | hint | pages)
    case 8:
      invalidation = .allPASIDs
      descriptor = (0x37, 0)
      command = nil
    case 9:
      invalidation = .pasidsOfDomain(domain)
      descriptor = (0x07 | did, 0)
      command = nil
    case 10:
      invalidation = .pasid(pasid, domain: domain)
      descriptor = (0x17 | did | UInt64(pasid) << 32, 0)
      command = nil
    case 11:
      invalidation = .translationsOfPASID(pasid, domain: domain)
      descriptor = (0x26 | did | UInt64(pasid) << 32, 0)
      command = nil
    default:
      invalidation = .pagesOfPASID(pasid, domain: domain, range, leafOnly: hint != 0)
      descriptor = (0x36 | did | UInt64(pasid) << 32, start | hint | pages)
      command = nil
    }
  }

  /// Submits the invalidation to the unit.
  /// - Returns: whether the unit reports completion.
  func submit(to guest: Guest, byRegister: Bool) -> Bool {
    guard byRegister, let command else { return guest.submitAndWait([descriptor.0, descriptor.1]) }
    if let address = command.address { guest.write64(0xf0, address) }
    guest.write64(command.offset, command.value)
    let done = guest.read64(command.offset)
    // The granularity performed (CAIG, IAIG) must be the requested one.
    let actual = command.offset == 0x28 ? done >> 59 & 3 : done >> 57 & 3
    let wanted = command.offset == 0x28 ? command.value >> 61 & 3 : command.value >> 60 & 3
    return done >> 63 == 0 && actual == wanted
  }
}
