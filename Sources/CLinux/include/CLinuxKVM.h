// The part of <linux/kvm.h> and <asm/kvm.h> of Linux 6.12, x86-64, that Nestling uses.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define NESTLING_REQUEST(name, number) static const unsigned int name = number

NESTLING_REQUEST(KVM_GET_API_VERSION, 0xae00);
NESTLING_REQUEST(KVM_CREATE_VM, 0xae01);
NESTLING_REQUEST(KVM_GET_MSR_INDEX_LIST, 0xc004ae02);
NESTLING_REQUEST(KVM_CHECK_EXTENSION, 0xae03);
NESTLING_REQUEST(KVM_GET_VCPU_MMAP_SIZE, 0xae04);
NESTLING_REQUEST(KVM_GET_SUPPORTED_CPUID, 0xc008ae05);
NESTLING_REQUEST(KVM_CREATE_VCPU, 0xae41);
NESTLING_REQUEST(KVM_SET_USER_MEMORY_REGION, 0x4020ae46);
NESTLING_REQUEST(KVM_SET_TSS_ADDR, 0xae47);
NESTLING_REQUEST(KVM_SET_IDENTITY_MAP_ADDR, 0x4008ae48);
NESTLING_REQUEST(KVM_SET_GSI_ROUTING, 0x4008ae6a);
NESTLING_REQUEST(KVM_IRQFD, 0x4020ae76);
NESTLING_REQUEST(KVM_IOEVENTFD, 0x4040ae79);
NESTLING_REQUEST(KVM_RUN, 0xae80);
NESTLING_REQUEST(KVM_GET_REGS, 0x8090ae81);
NESTLING_REQUEST(KVM_SET_REGS, 0x4090ae82);
NESTLING_REQUEST(KVM_GET_SREGS, 0x8138ae83);
NESTLING_REQUEST(KVM_SET_SREGS, 0x4138ae84);
NESTLING_REQUEST(KVM_GET_MSRS, 0xc008ae88);
NESTLING_REQUEST(KVM_SET_MSRS, 0x4008ae89);
NESTLING_REQUEST(KVM_GET_FPU, 0x81a0ae8c);
NESTLING_REQUEST(KVM_SET_FPU, 0x41a0ae8d);
NESTLING_REQUEST(KVM_GET_LAPIC, 0x8400ae8e);
NESTLING_REQUEST(KVM_SET_LAPIC, 0x4400ae8f);
NESTLING_REQUEST(KVM_SET_CPUID2, 0x4008ae90);
NESTLING_REQUEST(KVM_GET_MP_STATE, 0x8004ae98);
NESTLING_REQUEST(KVM_SET_MP_STATE, 0x4004ae99);
NESTLING_REQUEST(KVM_GET_VCPU_EVENTS, 0x8040ae9f);
NESTLING_REQUEST(KVM_SET_VCPU_EVENTS, 0x4040aea0);
NESTLING_REQUEST(KVM_GET_DEBUGREGS, 0x8080aea1);
NESTLING_REQUEST(KVM_SET_DEBUGREGS, 0x4080aea2);
NESTLING_REQUEST(KVM_ENABLE_CAP, 0x4068aea3);
NESTLING_REQUEST(KVM_GET_TSC_KHZ, 0xaea3);
NESTLING_REQUEST(KVM_SIGNAL_MSI, 0x4020aea5);
NESTLING_REQUEST(KVM_GET_XCRS, 0x8188aea6);
NESTLING_REQUEST(KVM_SET_XCRS, 0x4188aea7);
NESTLING_REQUEST(KVM_CREATE_DEVICE, 0xc00caee0);
NESTLING_REQUEST(KVM_SET_DEVICE_ATTR, 0x4018aee1);

#undef NESTLING_REQUEST

enum {
    KVM_API_VERSION = 12,
    KVM_CAP_IRQ_ROUTING = 25,
    KVM_CAP_IRQFD = 32,
    KVM_CAP_IOEVENTFD = 36,
    KVM_CAP_VCPU_EVENTS = 41,
    KVM_CAP_DEBUGREGS = 50,
    KVM_CAP_XCRS = 56,
    KVM_CAP_MAX_VCPUS = 66,
    KVM_CAP_TSC_DEADLINE_TIMER = 72,
    KVM_CAP_SIGNAL_MSI = 77,
    KVM_CAP_SPLIT_IRQCHIP = 121,
    KVM_CAP_IOEVENTFD_ANY_LENGTH = 122,
    KVM_CAP_X2APIC_API = 129,
    KVM_CAP_IMMEDIATE_EXIT = 136,

    KVM_X2APIC_API_USE_32BIT_IDS = 1 << 0,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 1,

    KVM_EXIT_IO = 2,
    KVM_EXIT_HLT = 5,
    KVM_EXIT_MMIO = 6,
    KVM_EXIT_SHUTDOWN = 8,
    KVM_EXIT_FAIL_ENTRY = 9,
    KVM_EXIT_INTR = 10,
    KVM_EXIT_INTERNAL_ERROR = 17,
    KVM_EXIT_SYSTEM_EVENT = 24,
    KVM_EXIT_IOAPIC_EOI = 26,

    KVM_EXIT_IO_IN = 0,
    KVM_EXIT_IO_OUT = 1,

    KVM_SYSTEM_EVENT_SHUTDOWN = 1,
    KVM_SYSTEM_EVENT_RESET = 2,
    KVM_SYSTEM_EVENT_CRASH = 3,

    KVM_MP_STATE_RUNNABLE = 0,
    KVM_MP_STATE_UNINITIALIZED = 1,

    KVM_IRQ_ROUTING_MSI = 2,
    KVM_IRQFD_FLAG_DEASSIGN = 1 << 0,
    KVM_IRQFD_FLAG_RESAMPLE = 1 << 1,
    KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0,
    KVM_IOEVENTFD_FLAG_PIO = 1 << 1,
    KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2,

    KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0,

    KVM_DEV_TYPE_VFIO = 4,
    KVM_DEV_VFIO_FILE = 1,
    KVM_DEV_VFIO_FILE_ADD = 1,
    KVM_DEV_VFIO_FILE_DEL = 2,
};

struct kvm_userspace_memory_region {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
};

struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx;
    uint64_t rsi, rdi, rsp, rbp;
    uint64_t r8, r9, r10, r11;
    uint64_t r12, r13, r14, r15;
    uint64_t rip, rflags;
};

struct kvm_segment {
    uint64_t base;
    uint32_t limit;
    uint16_t selector;
    uint8_t type;
    uint8_t present, dpl, db, s, l, g, avl;
    uint8_t unusable;
    uint8_t padding;
};

struct kvm_dtable {
    uint64_t base;
    uint16_t limit;
    uint16_t padding[3];
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8;
    uint64_t efer;
    uint64_t apic_base;
    uint64_t interrupt_bitmap[4];
};

/// Saved and restored as a whole; no field is used.
struct kvm_fpu {
    uint8_t state[416];
};

/// The registers of the local APIC at their offsets in its page.
struct kvm_lapic_state {
    uint8_t regs[1024];
};

struct kvm_msr_entry {
    uint32_t index;
    uint32_t reserved;
    uint64_t data;
};

/// Followed by `nmsrs` entries.
struct kvm_msrs {
    uint32_t nmsrs;
    uint32_t pad;
};

/// Followed by `nmsrs` indices of 4 bytes.
struct kvm_msr_list {
    uint32_t nmsrs;
};

struct kvm_cpuid_entry2 {
    uint32_t function;
    uint32_t index;
    uint32_t flags;
    uint32_t eax;
    uint32_t ebx;
    uint32_t ecx;
    uint32_t edx;
    uint32_t padding[3];
};

/// Followed by `nent` entries.
struct kvm_cpuid2 {
    uint32_t nent;
    uint32_t padding;
};

struct kvm_mp_state {
    uint32_t mp_state;
};

/// Saved and restored as a whole.
struct kvm_vcpu_events {
    uint8_t state[64];
};

/// Saved and restored as a whole.
struct kvm_debugregs {
    uint8_t state[128];
};

/// Saved and restored as a whole.
struct kvm_xcrs {
    uint8_t state[392];
};

struct kvm_enable_cap {
    uint32_t cap;
    uint32_t flags;
    uint64_t args[4];
    uint8_t pad[64];
};

/// The kernel's structure with its union reduced to MSI.
struct kvm_irq_routing_entry {
    uint32_t gsi;
    uint32_t type;
    uint32_t flags;
    uint32_t pad;
    struct {
        uint32_t address_lo;
        uint32_t address_hi;
        uint32_t data;
        uint32_t devid;
        uint32_t pad[4];
    } msi;
};

/// Followed by `nr` entries.
struct kvm_irq_routing {
    uint32_t nr;
    uint32_t flags;
};

struct kvm_irqfd {
    uint32_t fd;
    uint32_t gsi;
    uint32_t flags;
    uint32_t resamplefd;
    uint8_t pad[16];
};

struct kvm_ioeventfd {
    uint64_t datamatch;
    uint64_t addr;
    uint32_t len;
    int32_t fd;
    uint32_t flags;
    uint8_t pad[36];
};

struct kvm_msi {
    uint32_t address_lo;
    uint32_t address_hi;
    uint32_t data;
    uint32_t flags;
    uint32_t devid;
    uint8_t pad[12];
};

struct kvm_create_device {
    uint32_t type;
    uint32_t fd;
    uint32_t flags;
};

struct kvm_device_attr {
    uint32_t flags;
    uint32_t group;
    uint64_t attr;
    uint64_t addr;
};

/// The start of the memory that a vCPU shares with the kernel, up to the last field used.
struct kvm_run {
    uint8_t request_interrupt_window;
    uint8_t immediate_exit;
    uint8_t padding1[6];
    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection;
    uint8_t if_flag;
    uint16_t flags;
    uint64_t cr8;
    uint64_t apic_base;
    union {
        struct {
            uint64_t hardware_entry_failure_reason;
            uint32_t cpu;
        } fail_entry;
        struct {
            uint8_t direction;
            uint8_t size;
            uint16_t port;
            uint32_t count;
            uint64_t data_offset;
        } io;
        struct {
            uint64_t phys_addr;
            uint8_t data[8];
            uint32_t len;
            uint8_t is_write;
        } mmio;
        struct {
            uint32_t suberror;
            uint32_t ndata;
            uint64_t data[16];
        } internal;
        struct {
            uint32_t type;
            uint32_t ndata;
            uint64_t data[16];
        } system_event;
        struct {
            uint8_t vector;
        } eoi;
    };
};

/// The offset of mmio.data in kvm_run. Swift cannot compute the offset of a union's member.
enum { NESTLING_KVM_RUN_MMIO_DATA = offsetof(struct kvm_run, mmio.data) };
