/* A port: the IOTLB (two ways, 256 sets, three page sizes), and what happens on a hit and on a miss. */
#define _GNU_SOURCE
#include "internal.h"

#include <sys/resource.h>
#include <time.h>

static int shift_of_class(int size_class) { return 12 + 9 * size_class; }

static unsigned set_of(uint64_t address, int shift) {
    uint64_t page = address >> shift;
    return (unsigned)((page ^ page >> TLB_SET_BITS) & ((1 << TLB_SET_BITS) - 1)) * TLB_WAYS;
}

static bool tlb_lookup(const struct tlb *tlb, uint64_t address, uint64_t tag, enum cw_access access,
                       uint64_t *output, int *shift) {
    int size_class = 0;
    for (uint8_t classes = tlb->classes; classes; classes >>= 1, size_class++) {
        if (!(classes & 1)) continue;
        int bits = shift_of_class(size_class);
        uint64_t page = address >> bits << bits | (uint64_t)(size_class + 1);
        const struct tlb_entry *set = &tlb->entries[set_of(address, bits)];
        for (int way = 0; way < TLB_WAYS; way++) {
            if (set[way].page == page && set[way].tag == tag && !((uint64_t)access & ~set[way].output & 0xfff)) {
                *output = set[way].output & ~0xfffull;
                *shift = bits;
                return true;
            }
        }
    }
    return false;
}

static bool meets_interrupt_range(uint64_t address, uint64_t mask) {
    return (address & ~mask) <= 0xfeefffff && (address | mask) >= 0xfee00000;
}

static int tlb_insert(struct tlb *tlb, const struct mapping *mapping, uint64_t address, uint64_t output,
                      uint64_t tag) {
    int size_class = mapping->shift >= 30 ? 2 : mapping->shift >= 21 ? 1 : 0;
    if (size_class > 0) {
        uint64_t mask = (1ull << shift_of_class(size_class)) - 1;
        if (meets_interrupt_range(address, mask) || meets_interrupt_range(output, mask)) size_class = 0;
    }
    int shift = shift_of_class(size_class);
    struct tlb_entry entry = {
        .page = address >> shift << shift | (uint64_t)(size_class + 1),
        .tag = tag,
        .output = output >> shift << shift | (mapping->readable ? CW_READ : 0) | (mapping->writable ? CW_WRITE : 0),
    };
    struct tlb_entry *set = &tlb->entries[set_of(address, shift)];
    unsigned place = tlb->victim;
    for (unsigned way = 0; way < TLB_WAYS; way++) {
        if (set[way].page == entry.page && set[way].tag == tag) {
            place = way;
            break;
        }
        if (set[way].page == 0) place = way;
    }
    set[place] = entry;
    tlb->classes |= (uint8_t)(1 << size_class);
    tlb->victim = (tlb->victim + 1) % TLB_WAYS;
    return shift;
}

static bool matches(const struct tlb_entry *entry, uint16_t domain, uint32_t pasid) {
    return (uint16_t)entry->tag == domain && (uint32_t)(entry->tag >> 16 & 0xfffff) == pasid &&
           entry->tag >> 40 != CW_SECOND;
}

void tlb_remove_range(struct tlb *tlb, uint64_t first, uint64_t last, uint16_t domain, uint32_t pasid) {
    for (int size_class = 0; size_class < 3; size_class++) {
        if (!(tlb->classes & 1 << size_class)) continue;
        int shift = shift_of_class(size_class);
        uint64_t pages = (last >> shift) - (first >> shift);
        if (pages < 1 << (TLB_SET_BITS - 2)) {
            for (uint64_t page = 0; page <= pages; page++) {
                uint64_t address = ((first >> shift) + page) << shift;
                struct tlb_entry *set = &tlb->entries[set_of(address, shift)];
                for (int way = 0; way < TLB_WAYS; way++)
                    if (set[way].page == (address | (uint64_t)(size_class + 1)) && matches(&set[way], domain, pasid))
                        set[way].page = 0;
            }
            continue;
        }
        for (struct tlb_entry *entry = tlb->entries; entry < tlb->entries + TLB_ENTRIES; entry++) {
            uint64_t start = entry->page & ~0xfffull;
            if ((entry->page & 0xfff) == (uint64_t)(size_class + 1) && start <= last &&
                first <= (start | ((1ull << shift) - 1)) && matches(entry, domain, pasid))
                entry->page = 0;
        }
    }
}

static uint64_t at_most(uint64_t count, uint64_t address, int shift) {
    uint64_t rest = (1ull << shift) - (address & ((1ull << shift) - 1));
    return count < rest ? count : rest;
}

static int miss(struct cw_port *port, uint64_t address, uint64_t count, enum cw_access access,
                struct cw_segment *segment) {
    const struct cw_unit *unit = port->unit;
    if (is_interrupt_address(address)) {
        segment->address = address;
        segment->count = at_most(count, address, 12);
        return 0;
    }
    struct mapping mapping;
    int fault;
    port->misses++;
    if (port->path.stages == CW_SECOND) {
        port->second_walks++;
        fault = walk_second(&port->path, &unit->rules, &unit->ram, address, access, &mapping);
    } else {
        if (port->path.stages == CW_BOTH) port->nested_walks++;
        else port->first_walks++;
        fault = walk_first(&port->path, &unit->rules, &unit->ram, address, access, &mapping);
    }
    uint64_t output = 0;
    if (!fault) {
        output = mapping.output | (address & ((1ull << mapping.shift) - 1));
        if (is_interrupt_address(output)) fault = 0x87;
    }
    if (fault) {
        port->faults++;
        return fault;
    }
    int shift = tlb_insert(&port->tlb, &mapping, address, output, port->tag);
    segment->address = output;
    segment->count = at_most(count, address, shift);
    return 0;
}

static int translate_locked(struct cw_port *port, uint16_t source, uint64_t address, uint64_t count,
                            enum cw_access access, struct cw_segment *segment) {
    if (!port->enabled) {
        segment->address = address;
        segment->count = count;
        return 0;
    }
    uint64_t output;
    int shift;
    if (source == port->source && port->ready && !is_interrupt_address(address) &&
        tlb_lookup(&port->tlb, address, port->tag, access, &output, &shift)) {
        port->hits++;
        segment->address = output | (address & ((1ull << shift) - 1));
        segment->count = at_most(count, address, shift);
        return 0;
    }
    return miss(port, address, count, access, segment);
}

int cw_translate(struct cw_port *port, uint64_t address, uint64_t count, enum cw_access access,
                 struct cw_segment *segment) {
    if (!atomic_load_explicit(&port->bus_master, memory_order_acquire)) return -1;
    uint16_t source = atomic_load_explicit(&port->requester, memory_order_relaxed);
    pthread_mutex_lock(&port->lock);
    int fault = translate_locked(port, source, address, count, access, segment);
    pthread_mutex_unlock(&port->lock);
    return fault;
}

uint64_t cw_hits(const struct cw_port *port) { return port->hits; }
uint64_t cw_misses(const struct cw_port *port) { return port->misses; }

static uint64_t clock_time(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

uint64_t cw_wall_time(void) { return clock_time(CLOCK_MONOTONIC); }
uint64_t cw_thread_time(void) { return clock_time(CLOCK_THREAD_CPUTIME_ID); }

uint64_t cw_thread_waits(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (uint64_t)usage.ru_nvcsw;
}
