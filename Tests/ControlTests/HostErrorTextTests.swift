import Linux
import Machine
import Testing

@testable import Control

/// The texts of errors that modules below `Control` report as values.
@Suite struct HostErrorTextTests {
  @Test("the text of a failed call names the operand, or else the call")
  func calls() {
    #expect(ErrorText.text(for: SystemError("open", "/etc/x", code: 13)) == "/etc/x: Permission denied")
    #expect(ErrorText.text(for: SystemError("KVM_RUN", code: 14)) == "KVM_RUN: Bad address")
  }

  @Test(
    "a cause replaces the errno's text",
    arguments: [
      (.notAnImage, "f: neither a regular file nor a block device"),
      (.noReader, "f: a FIFO without a reader"),
      (.fileSizeLimit(4096), "f: it is a file, and files are limited to 4096 bytes (RLIMIT_FSIZE, ulimit -f)"),
      (.parentEnded, "f: the process that started this one has ended already"),
      (.vectors(available: 1, requested: 2), "f: the host has 1 of 2 vectors for it"),
      (.notIPv4Address, "f: not an IPv4 address"),
      (.notPCIDevice, "f: not a PCI device"),
    ] as [(SystemError.Cause, String)])
  func causes(_ cause: SystemError.Cause, _ text: String) {
    #expect(ErrorText.text(for: SystemError("open", "f", code: 22, cause: cause)) == text)
  }

  @Test(
    "a machine that does not start has one line with the reason",
    arguments: [
      (.kvm(device: "", .version(11)), "-accel kvm: KVM's API version is 11, but must be 12"),
      (.kvm(device: "", .missingCapability("KVM_CAP_IRQFD")), "-accel kvm: this kernel's KVM lacks KVM_CAP_IRQFD"),
      (
        .kvm(device: "", .tooManyProcessors(asked: 9, most: 8)),
        "-accel kvm: 9 CPUs requested, but KVM here supports at most 8"
      ),
      (
        .portsInUse(first: 0x3f8, count: 4),
        "-device isa-debug-exit: iobase=0x3f8,iosize=4: ports are in use"
      ),
      (
        .tables(.tooLarge(size: 70_000, room: 65_536)),
        "the ACPI tables need 70000 bytes and have room for 65536: too many CPUs or devices"
      ),
      (.disk(.queueSize), "-device virtio-blk-pci: queue-size is out of range"),
      (.ended, "the machine ends"),
      (
        .boot(.readFailed(.kernel, .host(SystemError("read", "vmlinux", code: 5)))),
        "kernel cannot be read: vmlinux: Input/output error"
      ),
    ] as [(StartError, String)])
  func starts(_ error: StartError, _ text: String) {
    #expect(ErrorText.text(for: error) == text)
  }

  @Test(
    "a machine that cannot continue has one line with KVM's report",
    arguments: [
      (
        .internalError(suberror: 1, processor: 0, instructionPointer: 0x1000),
        "CPU 0: KVM internal error 1 at 0x1000"
      ),
      (.internalError(suberror: 3, processor: 2, instructionPointer: nil), "CPU 2: KVM internal error 3 at 0x?"),
      (.entryFailed(reason: 7, processor: 1), "CPU 1: KVM could not enter the guest, reason 7"),
      (.unknownExit(reason: 99, processor: 0), "CPU 0: unknown KVM exit 99"),
      (.kvm(.call(SystemError("KVM_RUN", "CPU 0", code: 14))), "CPU 0: Bad address"),
    ] as [(GuestCrash, String)])
  func crashes(_ crash: GuestCrash, _ text: String) {
    #expect(ErrorText.text(for: .crashed(crash)) == text)
  }
}
