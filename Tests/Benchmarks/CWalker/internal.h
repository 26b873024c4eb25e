/* Declarations shared by the files of this walker. */
#ifndef CWALKER_INTERNAL_H
#define CWALKER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "CWalker.h"

#define HIGH_BASE (1ull << 32)
#define ADDRESS_BITS 0x000ffffffffff000ull
#define ATTEMPTS 16

/* Reserved bits by level, for each type of entry. */
struct rules {
    int host_width, guest_width;
    uint64_t first_table[6], first_leaf[6], second_table[6], second_leaf[6];
};

struct ram {
    uint8_t *low, *high;
    uint64_t low_size, high_size;
};

struct mapping {
    uint64_t output;
    int shift;
    bool readable, writable;
};

struct tlb_entry {
    uint64_t page; /* with the size class plus one in the low bits */
    uint64_t tag;
    uint64_t output; /* with the rights in the low bits */
};

#define TLB_SET_BITS 8
#define TLB_WAYS 2
#define TLB_ENTRIES ((1 << TLB_SET_BITS) * TLB_WAYS)

struct tlb {
    uint8_t classes;
    unsigned victim;
    struct tlb_entry entries[TLB_ENTRIES];
};

struct cw_port {
    atomic_bool bus_master;
    _Atomic uint16_t requester;
    struct cw_unit *unit;
    pthread_mutex_t lock; /* protects the fields below */
    bool enabled, ready;
    uint16_t source;
    uint64_t tag;
    struct cw_path path;
    uint64_t hits, misses, first_walks, second_walks, nested_walks, faults;
    struct tlb tlb;
};

struct cw_unit {
    struct ram ram;
    struct rules rules;
    pthread_mutex_t ports_lock;
    struct cw_port *ports[8];
    unsigned port_count;
    pthread_mutex_t registers_lock; /* protects the queue's state */
    uint64_t queue_base, queue_size, head, tail;
    pthread_mutex_t queue_lock; /* held while a doorbell is served */
    uint64_t invalidations, waits;
};

static inline bool is_interrupt_address(uint64_t address) { return address >> 20 == 0xfee; }

static inline void *ram_at(const struct ram *ram, uint64_t address, uint64_t count) {
    if (address < ram->low_size) return count <= ram->low_size - address ? ram->low + address : NULL;
    if (address < HIGH_BASE || address - HIGH_BASE >= ram->high_size ||
        count > ram->high_size - (address - HIGH_BASE))
        return NULL;
    return ram->high + (address - HIGH_BASE);
}

static inline bool ram_load64(const struct ram *ram, uint64_t address, uint64_t *value) {
    if (address & 7) return false;
    const uint64_t *at = ram_at(ram, address, 8);
    if (!at) return false;
    *value = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    return true;
}

/* Stores the former value in `found`. */
static inline bool ram_compare_exchange64(const struct ram *ram, uint64_t address, uint64_t expected,
                                          uint64_t desired, uint64_t *found) {
    if (address & 7) return false;
    uint64_t *at = ram_at(ram, address, 8);
    if (!at) return false;
    *found = expected;
    __atomic_compare_exchange_n(at, found, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return true;
}

static inline uint64_t make_tag(uint16_t domain, uint32_t pasid, enum cw_stages stages) {
    return domain | (uint64_t)(pasid & 0xfffff) << 16 | (uint64_t)stages << 40;
}

int walk_first(const struct cw_path *path, const struct rules *rules, const struct ram *ram, uint64_t input,
               enum cw_access access, struct mapping *mapping);
int walk_second(const struct cw_path *path, const struct rules *rules, const struct ram *ram, uint64_t input,
                enum cw_access access, struct mapping *mapping);

void tlb_remove_range(struct tlb *tlb, uint64_t first, uint64_t last, uint16_t domain, uint32_t pasid);

#endif
