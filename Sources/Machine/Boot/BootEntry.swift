/// The state in which the first CPU starts a loaded kernel. Everything that it points to is already in guest memory.
/// All registers that are not named are zero, and interrupts are disabled.
enum BootEntry: Hashable, Sendable {
  case longMode(LongModeEntry)
  case protectedMode(ProtectedModeEntry)
}

/// 64-bit code with paging enabled: CR0.PE and PG, CR4.PAE, EFER.LME and LMA set.
struct LongModeEntry: Hashable, Sendable {
  /// RIP.
  var instructionPointer: UInt64
  /// RSI: the address of `boot_params`.
  var bootParameters: UInt64
  /// CR3: a PML4 that maps the first 4 GiB to themselves.
  var pageTableRoot: UInt64
  /// GDTR: the table with the descriptors of the selectors below.
  var descriptorTableBase: UInt64
  /// GDTR: offset of the table's last byte.
  var descriptorTableLimit: UInt16

  /// CS, `__BOOT_CS`: base 0, limit 4 GiB, execute/read, L set, D clear.
  static let codeSelector: UInt16 = 0x10
  /// DS, ES and SS, `__BOOT_DS`: base 0, limit 4 GiB, read/write.
  static let dataSelector: UInt16 = 0x18
}

/// 32-bit code without paging: CR0.PE set, PG clear. CS is execute/read; DS, ES, FS, GS and SS are read/write; all have
/// base 0 and limit 4 GiB. GDTR is not valid: the kernel loads its own table.
struct ProtectedModeEntry: Hashable, Sendable {
  /// EIP.
  var instructionPointer: UInt32
  /// EAX.
  var accumulator: UInt32
  /// EBX: the address of the kernel's start information.
  var startInformation: UInt32
}
