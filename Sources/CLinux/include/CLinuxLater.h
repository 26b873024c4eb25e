// Declarations of <linux/iommufd.h> and <linux/vfio.h> that Linux 6.12 lacks. It answers the requests with ENOTTY:
// mapping a file into an address space, and exporting a region of a device as such a file, a dma-buf (both together from
// 6.19 on). It refuses the flags for PASIDs (from 6.15 on) with EOPNOTSUPP or EINVAL.
#pragma once

#include <stdint.h>

#define NESTLING_REQUEST(name, number) static const unsigned int name = number

NESTLING_REQUEST(IOMMU_IOAS_MAP_FILE, 0x3b8f);

#undef NESTLING_REQUEST

struct iommu_ioas_map_file {
    uint32_t size;
    uint32_t flags;
    uint32_t ioas_id;
    int32_t fd;
    uint64_t start;
    uint64_t length;
    uint64_t iova;
};

enum {
    IOMMU_HWPT_ALLOC_PASID = 1 << 3,

    VFIO_DEVICE_ATTACH_PASID = 1 << 0,
    VFIO_DEVICE_DETACH_PASID = 1 << 0,
};

enum {
    VFIO_DEVICE_FEATURE_DMA_BUF = 11,
};

struct vfio_region_dma_range {
    uint64_t offset;
    uint64_t length;
};

// The ranges follow this structure.
struct vfio_device_feature_dma_buf {
    uint32_t region_index;
    uint32_t open_flags;
    uint32_t flags;
    uint32_t nr_ranges;
};

// The bits of iommu_hw_info.out_capabilities for PCI functions: clear on an older kernel. The first two accompany a
// PASID width.
enum {
    IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1,
    IOMMU_HW_CAP_PCI_PASID_PRIV = 1 << 2,
    IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 1 << 3,
};
