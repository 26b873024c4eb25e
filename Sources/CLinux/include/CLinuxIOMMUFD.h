// The part of <linux/iommufd.h> of Linux 6.12 that Nestling uses. The structure of each request begins with its size,
// by which the kernel distinguishes versions.
#pragma once

#include <stdint.h>

#define NESTLING_REQUEST(name, number) static const unsigned int name = number

NESTLING_REQUEST(IOMMU_DESTROY, 0x3b80);
NESTLING_REQUEST(IOMMU_IOAS_ALLOC, 0x3b81);
NESTLING_REQUEST(IOMMU_IOAS_IOVA_RANGES, 0x3b84);
NESTLING_REQUEST(IOMMU_IOAS_MAP, 0x3b85);
NESTLING_REQUEST(IOMMU_IOAS_UNMAP, 0x3b86);
NESTLING_REQUEST(IOMMU_HWPT_ALLOC, 0x3b89);
NESTLING_REQUEST(IOMMU_GET_HW_INFO, 0x3b8a);
NESTLING_REQUEST(IOMMU_HWPT_INVALIDATE, 0x3b8d);
NESTLING_REQUEST(IOMMU_FAULT_QUEUE_ALLOC, 0x3b8e);

#undef NESTLING_REQUEST

struct iommu_destroy {
    uint32_t size;
    uint32_t id;
};

struct iommu_ioas_alloc {
    uint32_t size;
    uint32_t flags;
    uint32_t out_ioas_id;
};

struct iommu_iova_range {
    uint64_t start;
    uint64_t last;
};

struct iommu_ioas_iova_ranges {
    uint32_t size;
    uint32_t ioas_id;
    uint32_t num_iovas;
    uint32_t __reserved;
    uint64_t allowed_iovas;
    uint64_t out_iova_alignment;
};

enum {
    IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
    IOMMU_IOAS_MAP_WRITEABLE = 1 << 1,
    IOMMU_IOAS_MAP_READABLE = 1 << 2,
};

struct iommu_ioas_map {
    uint32_t size;
    uint32_t flags;
    uint32_t ioas_id;
    uint32_t __reserved;
    uint64_t user_va;
    uint64_t length;
    uint64_t iova;
};

struct iommu_ioas_unmap {
    uint32_t size;
    uint32_t ioas_id;
    uint64_t iova;
    uint64_t length;
};

enum {
    IOMMU_HWPT_ALLOC_NEST_PARENT = 1 << 0,
    IOMMU_HWPT_FAULT_ID_VALID = 1 << 2,
};

enum {
    IOMMU_HWPT_DATA_NONE = 0,
    IOMMU_HWPT_DATA_VTD_S1 = 1,
};

enum {
    IOMMU_VTD_S1_SRE = 1 << 0,
    IOMMU_VTD_S1_EAFE = 1 << 1,
    IOMMU_VTD_S1_WPE = 1 << 2,
};

struct iommu_hwpt_vtd_s1 {
    uint64_t flags;
    uint64_t pgtbl_addr;
    uint32_t addr_width;
    uint32_t __reserved;
};

struct iommu_hwpt_alloc {
    uint32_t size;
    uint32_t flags;
    uint32_t dev_id;
    uint32_t pt_id;
    uint32_t out_hwpt_id;
    uint32_t __reserved;
    uint32_t data_type;
    uint32_t data_len;
    uint64_t data_uptr;
    uint32_t fault_id;
    uint32_t __reserved2;
};

enum {
    IOMMU_HW_INFO_TYPE_NONE = 0,
    IOMMU_HW_INFO_TYPE_INTEL_VTD = 1,

    IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 1 << 0,
};

struct iommu_hw_info_vtd {
    uint32_t flags;
    uint32_t __reserved;
    uint64_t cap_reg;
    uint64_t ecap_reg;
};

struct iommu_hw_info {
    uint32_t size;
    uint32_t flags;
    uint32_t dev_id;
    uint32_t data_len;
    uint64_t data_uptr;
    uint32_t out_data_type;
    uint8_t out_max_pasid_log2;
    uint8_t __reserved[3];
    uint64_t out_capabilities;
};

enum {
    IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0,

    IOMMU_VTD_INV_FLAGS_LEAF = 1 << 0,
};

struct iommu_hwpt_vtd_s1_invalidate {
    uint64_t addr;
    uint64_t npages;
    uint32_t flags;
    uint32_t __reserved;
};

struct iommu_hwpt_invalidate {
    uint32_t size;
    uint32_t hwpt_id;
    uint64_t data_uptr;
    uint32_t data_type;
    uint32_t entry_len;
    uint32_t entry_num;
    uint32_t __reserved;
};

enum {
    IOMMU_PGFAULT_FLAGS_PASID_VALID = 1 << 0,
    IOMMU_PGFAULT_FLAGS_LAST_PAGE = 1 << 1,

    IOMMU_PGFAULT_PERM_READ = 1 << 0,
    IOMMU_PGFAULT_PERM_WRITE = 1 << 1,
    IOMMU_PGFAULT_PERM_EXEC = 1 << 2,
    IOMMU_PGFAULT_PERM_PRIV = 1 << 3,
};

struct iommu_hwpt_pgfault {
    uint32_t flags;
    uint32_t dev_id;
    uint32_t pasid;
    uint32_t grpid;
    uint32_t perm;
    uint32_t __reserved;
    uint64_t addr;
    uint32_t length;
    uint32_t cookie;
};

enum {
    IOMMUFD_PAGE_RESP_SUCCESS = 0,
    IOMMUFD_PAGE_RESP_INVALID = 1,
};

struct iommu_hwpt_page_response {
    uint32_t cookie;
    uint32_t code;
};

struct iommu_fault_alloc {
    uint32_t size;
    uint32_t flags;
    uint32_t out_fault_id;
    uint32_t out_fault_fd;
};
