// The part of <linux/vfio.h> of Linux 6.12 that Nestling uses: device files (cdev) and iommufd, no groups and no
// containers. The structure of each request begins with its size, which includes the list that follows it. The two
// fields `pasid` are those of Linux 6.15: an older kernel accepts the longer structures, but not the flags for PASIDs
// (CLinuxLater.h).
#pragma once

#include <stdint.h>

#define NESTLING_REQUEST(name, number) static const unsigned int name = number

NESTLING_REQUEST(VFIO_DEVICE_GET_INFO, 0x3b6b);
NESTLING_REQUEST(VFIO_DEVICE_GET_REGION_INFO, 0x3b6c);
NESTLING_REQUEST(VFIO_DEVICE_GET_IRQ_INFO, 0x3b6d);
NESTLING_REQUEST(VFIO_DEVICE_SET_IRQS, 0x3b6e);
NESTLING_REQUEST(VFIO_DEVICE_RESET, 0x3b6f);
NESTLING_REQUEST(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, 0x3b70);
NESTLING_REQUEST(VFIO_DEVICE_PCI_HOT_RESET, 0x3b71);
NESTLING_REQUEST(VFIO_DEVICE_FEATURE, 0x3b75);
NESTLING_REQUEST(VFIO_DEVICE_BIND_IOMMUFD, 0x3b76);
NESTLING_REQUEST(VFIO_DEVICE_ATTACH_IOMMUFD_PT, 0x3b77);
NESTLING_REQUEST(VFIO_DEVICE_DETACH_IOMMUFD_PT, 0x3b78);

#undef NESTLING_REQUEST

struct vfio_info_cap_header {
    uint16_t id;
    uint16_t version;
    uint32_t next;
};

enum {
    VFIO_DEVICE_FLAGS_RESET = 1 << 0,
    VFIO_DEVICE_FLAGS_PCI = 1 << 1,
};

struct vfio_device_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t num_regions;
    uint32_t num_irqs;
    uint32_t cap_offset;
    uint32_t pad;
};

enum {
    VFIO_REGION_INFO_FLAG_READ = 1 << 0,
    VFIO_REGION_INFO_FLAG_WRITE = 1 << 1,
    VFIO_REGION_INFO_FLAG_MMAP = 1 << 2,
    VFIO_REGION_INFO_FLAG_CAPS = 1 << 3,

    VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3,
};

struct vfio_region_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t cap_offset;
    uint64_t size;
    uint64_t offset;
};

struct vfio_region_sparse_mmap_area {
    uint64_t offset;
    uint64_t size;
};

// The areas follow this structure.
struct vfio_region_info_cap_sparse_mmap {
    struct vfio_info_cap_header header;
    uint32_t nr_areas;
    uint32_t reserved;
};

enum {
    VFIO_IRQ_INFO_EVENTFD = 1 << 0,
    VFIO_IRQ_INFO_MASKABLE = 1 << 1,
    VFIO_IRQ_INFO_AUTOMASKED = 1 << 2,
    VFIO_IRQ_INFO_NORESIZE = 1 << 3,
};

struct vfio_irq_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
};

enum {
    VFIO_IRQ_SET_DATA_NONE = 1 << 0,
    VFIO_IRQ_SET_DATA_BOOL = 1 << 1,
    VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2,
    VFIO_IRQ_SET_ACTION_MASK = 1 << 3,
    VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4,
    VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5,
};

// The descriptors follow this structure, 4 bytes each.
struct vfio_irq_set {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t start;
    uint32_t count;
};

enum {
    VFIO_PCI_BAR0_REGION_INDEX = 0,
    VFIO_PCI_ROM_REGION_INDEX = 6,
    VFIO_PCI_CONFIG_REGION_INDEX = 7,

    VFIO_PCI_INTX_IRQ_INDEX = 0,
    VFIO_PCI_MSI_IRQ_INDEX = 1,
    VFIO_PCI_MSIX_IRQ_INDEX = 2,
    VFIO_PCI_ERR_IRQ_INDEX = 3,
    VFIO_PCI_REQ_IRQ_INDEX = 4,

    VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 1 << 0,
    VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 1 << 1,

    VFIO_PCI_DEVID_NOT_OWNED = -1,
    VFIO_PCI_DEVID_OWNED = 0,
};

struct vfio_pci_dependent_device {
    union {
        uint32_t group_id;
        uint32_t devid;
    };
    uint16_t segment;
    uint8_t bus;
    uint8_t devfn;
};

// The dependent devices follow this structure.
struct vfio_pci_hot_reset_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t count;
};

// Group descriptors would follow it; device files need none.
struct vfio_pci_hot_reset {
    uint32_t argsz;
    uint32_t flags;
    uint32_t count;
};

enum {
    VFIO_DEVICE_FEATURE_GET = 1 << 16,
};

// The feature's own structure follows this structure.
struct vfio_device_feature {
    uint32_t argsz;
    uint32_t flags;
};

struct vfio_device_bind_iommufd {
    uint32_t argsz;
    uint32_t flags;
    int32_t iommufd;
    uint32_t out_devid;
};

struct vfio_device_attach_iommufd_pt {
    uint32_t argsz;
    uint32_t flags;
    uint32_t pt_id;
    uint32_t pasid;
};

struct vfio_device_detach_iommufd_pt {
    uint32_t argsz;
    uint32_t flags;
    uint32_t pasid;
};
