import Hardware

// The entries that lead from a source-id to paging tables (VT-d 9.1 to 9.6), for inspection: address, words, and fields
// with the specification's mnemonics.

/// One entry of the root table, a context table, a PASID directory or a PASID table in memory.
public struct StructureEntry: Hashable, Sendable {
  public enum Kind: Hashable, Sendable {
    case root
    /// Half of a scalable-mode root entry: for devices 0 to 15 or 16 to 31.
    case scalableRoot
    case context
    case scalableContext
    case pasidDirectory
    case pasid
  }

  public let kind: Kind
  /// The entry's physical address.
  public let address: UInt64
  /// The entry's words; nil if the entry is not in RAM.
  public let words: [UInt64]?

  init(_ kind: Kind, at address: UInt64, memory: any PhysicalMemory) {
    self.kind = kind
    self.address = address
    var words: [UInt64] = []
    for index in 0..<kind.wordCount {
      guard let word = memory.loadUInt64(at: address &+ 8 &* UInt64(index)) else {
        self.words = nil
        return
      }
      words.append(word)
    }
    self.words = words
  }

  public var isPresent: Bool { words?.first.map { $0[bit: 0] } ?? false }

  /// The table that the entry points to.
  var pointer: UInt64? { words?.first.map { $0 & ~0xfff } }
}

extension StructureEntry.Kind {
  /// Number of 64-bit words in an entry.
  fileprivate var wordCount: Int {
    switch self {
    case .scalableRoot, .pasidDirectory: 1
    case .root, .context: 2
    case .scalableContext: 4
    case .pasid: 8
    }
  }
}

/// A field of an entry, with its mnemonic.
public struct EntryField: Hashable, Sendable {
  public enum Value: Hashable, Sendable {
    case flag(Bool)
    case number(UInt64)
    /// A coded value that has a name.
    case choice(UInt64, String)
    case address(UInt64)
  }

  public let name: String
  public let value: Value

  init(_ name: String, _ value: Value) {
    self.name = name
    self.value = value
  }
}

extension StructureEntry {
  /// The fields in bit order. Empty where the entry is not in RAM.
  public var fields: [EntryField] {
    guard let words else { return [] }
    let first = words[0]
    func flag(_ name: String, _ bit: Int, of word: Int = 0) -> EntryField {
      EntryField(name, .flag(words[word][bit: bit]))
    }
    func number(_ name: String, _ bits: ClosedRange<Int>, of word: Int = 0) -> EntryField {
      EntryField(name, .number(words[word][bits: bits]))
    }
    func pointer(_ name: String, of word: Int = 0) -> EntryField {
      EntryField(name, .address(words[word] & ~0xfff))
    }
    switch kind {
    case .root: return [flag("P", 0), pointer("CTP")]
    case .scalableRoot: return [flag("P", 0), pointer("CTP")]
    case .context:
      return [
        flag("P", 0), flag("FPD", 1),
        EntryField("TT", .choice(first[bits: 2...3], Self.contextTypes[Int(first[bits: 2...3])])),
        Self.addressWidth(words[1][bits: 0...2]), number("DID", 8...23, of: 1), pointer("SSPTPTR"),
      ]
    case .scalableContext:
      return [
        flag("P", 0), flag("FPD", 1), flag("DTE", 2), flag("PASIDE", 3), flag("PRE", 4),
        number("PDTS", 9...11), pointer("PASIDDIRPTR"), number("RID_PASID", 0...19, of: 1),
        flag("RID_PRIV", 20, of: 1),
      ]
    case .pasidDirectory: return [flag("P", 0), flag("FPD", 1), pointer("SMPTBLPTR")]
    case .pasid:
      var fields = [
        flag("P", 0), flag("FPD", 1),
        EntryField("PGTT", .choice(first[bits: 6...8], Self.translationTypes[Int(first[bits: 6...8])])),
        number("DID", 0...15, of: 1),
      ]
      if first[bits: 6...8] == 2 || first[bits: 6...8] == 3 {
        fields += [
          Self.addressWidth(first[bits: 2...4]), flag("SSADE", 9), pointer("SSPTPTR"),
        ]
      }
      if first[bits: 6...8] == 1 || first[bits: 6...8] == 3 {
        let mode = words[2][bits: 2...3]
        fields += [
          EntryField("FSPM", .choice(mode, ["4-level", "5-level", "reserved", "reserved"][Int(mode)])),
          flag("SRE", 0, of: 2), flag("ERE", 1, of: 2), flag("WPE", 4, of: 2), flag("NXE", 5, of: 2),
          flag("EAFE", 7, of: 2), pointer("FSPTPTR", of: 2),
        ]
      }
      return fields + [flag("PWSNP", 23, of: 1), flag("PGSNP", 24, of: 1)]
    }
  }

  private static let contextTypes = ["untranslated only", "with device-TLB", "pass-through", "reserved"]
  private static let translationTypes = [
    "reserved", "first stage", "second stage", "nested", "pass-through", "reserved", "reserved", "reserved",
  ]

  private static func addressWidth(_ field: UInt64) -> EntryField {
    let names = ["reserved", "39 bits", "48 bits", "57 bits", "reserved", "reserved", "reserved", "reserved"]
    return EntryField("AW", .choice(field, names[Int(field)]))
  }
}
