// The part of <linux/vhost.h> and <linux/vhost_types.h> of Linux 6.12 that Nestling uses.
#pragma once

#include <stdint.h>

#define NESTLING_REQUEST(name, number) static const unsigned int name = number

NESTLING_REQUEST(VHOST_GET_FEATURES, 0x8008af00);
NESTLING_REQUEST(VHOST_SET_FEATURES, 0x4008af00);
NESTLING_REQUEST(VHOST_SET_OWNER, 0x0000af01);
NESTLING_REQUEST(VHOST_SET_MEM_TABLE, 0x4008af03);
NESTLING_REQUEST(VHOST_SET_VRING_NUM, 0x4008af10);
NESTLING_REQUEST(VHOST_SET_VRING_ADDR, 0x4028af11);
NESTLING_REQUEST(VHOST_SET_VRING_BASE, 0x4008af12);
NESTLING_REQUEST(VHOST_GET_VRING_BASE, 0xc008af12);
NESTLING_REQUEST(VHOST_SET_VRING_KICK, 0x4008af20);
NESTLING_REQUEST(VHOST_SET_VRING_CALL, 0x4008af21);
NESTLING_REQUEST(VHOST_SET_VRING_ERR, 0x4008af22);
NESTLING_REQUEST(VHOST_SET_BACKEND_FEATURES, 0x4008af25);
NESTLING_REQUEST(VHOST_GET_BACKEND_FEATURES, 0x8008af26);
NESTLING_REQUEST(VHOST_NET_SET_BACKEND, 0x4008af30);

#undef NESTLING_REQUEST

enum {
    VHOST_BACKEND_F_IOTLB_MSG_V2 = 1,
    VHOST_IOTLB_MSG_V2 = 2,

    VHOST_IOTLB_MISS = 1,
    VHOST_IOTLB_UPDATE = 2,
    VHOST_IOTLB_INVALIDATE = 3,

    VHOST_ACCESS_RO = 1,
    VHOST_ACCESS_WO = 2,
};

struct vhost_vring_state {
    uint32_t index;
    uint32_t num;
};

struct vhost_vring_file {
    uint32_t index;
    int32_t fd;
};

struct vhost_vring_addr {
    uint32_t index;
    uint32_t flags;
    uint64_t desc_user_addr;
    uint64_t used_user_addr;
    uint64_t avail_user_addr;
    uint64_t log_guest_addr;
};

struct vhost_iotlb_msg {
    uint64_t iova;
    uint64_t size;
    uint64_t uaddr;
    uint8_t perm;
    uint8_t type;
};

struct vhost_msg_v2 {
    uint32_t type;
    uint32_t asid;
    union {
        struct vhost_iotlb_msg iotlb;
        uint8_t padding[64];
    };
};

struct vhost_memory_region {
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
    uint64_t flags_padding;
};

// The regions follow this structure.
struct vhost_memory {
    uint32_t nregions;
    uint32_t padding;
};
