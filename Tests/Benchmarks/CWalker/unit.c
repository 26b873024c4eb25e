/* The unit: RAM, ports, and the invalidation queue (VT-d 6.5.2). */
#include "internal.h"

#include <stdlib.h>
#include <sys/mman.h>

static void *map(uint64_t size) {
    if (size == 0) return NULL;
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? NULL : at;
}

struct cw_unit *cw_unit_create(uint64_t low_size, uint64_t high_size, int host_width, int guest_width,
                               bool gigabyte_pages) {
    struct cw_unit *unit = calloc(1, sizeof *unit);
    if (!unit) return NULL;
    unit->ram.low_size = low_size;
    unit->ram.high_size = high_size;
    unit->ram.low = map(low_size);
    unit->ram.high = map(high_size);
    if ((low_size && !unit->ram.low) || (high_size && !unit->ram.high)) {
        cw_unit_destroy(unit);
        return NULL;
    }
    pthread_mutex_init(&unit->ports_lock, NULL);
    pthread_mutex_init(&unit->registers_lock, NULL);
    pthread_mutex_init(&unit->queue_lock, NULL);
    struct rules *rules = &unit->rules;
    rules->host_width = host_width;
    rules->guest_width = guest_width;
    uint64_t beyond = host_width >= 52 ? 0 : ((1ull << 52) - 1) & ~((1ull << host_width) - 1);
    const uint64_t page_size = 1 << 7, transient = 1ull << 62, snoop = 1 << 11;
    const uint64_t below[6] = {0, 0, 0x1fe000, 0x3fffe000, 0, 0}, second_below[6] = {0, 0, 0x1ff000, 0x3ffff000, 0, 0};
    for (int level = 1; level <= 5; level++) {
        uint64_t large = level > 3 ? page_size : 0;
        rules->first_table[level] = beyond | large;
        rules->first_leaf[level] = beyond | below[level] | (level == 3 && !gigabyte_pages ? page_size : 0);
        rules->second_table[level] = beyond | large | transient | snoop;
        rules->second_leaf[level] = beyond | second_below[level] | transient;
    }
    return unit;
}

void cw_unit_destroy(struct cw_unit *unit) {
    for (unsigned index = 0; index < unit->port_count; index++) free(unit->ports[index]);
    if (unit->ram.low) munmap(unit->ram.low, unit->ram.low_size);
    if (unit->ram.high) munmap(unit->ram.high, unit->ram.high_size);
    free(unit);
}

uint8_t *cw_unit_ram(struct cw_unit *unit) { return unit->ram.low; }

struct cw_port *cw_port_create(struct cw_unit *unit, uint16_t source, const struct cw_path *path) {
    struct cw_port *port = NULL;
    pthread_mutex_lock(&unit->ports_lock);
    if (unit->port_count < sizeof unit->ports / sizeof *unit->ports && (port = aligned_alloc(64, (sizeof *port + 63) & ~63ul))) {
        *port = (struct cw_port){
            .unit = unit, .source = source, .path = *path, .enabled = true, .ready = true,
            .tag = make_tag(path->domain, path->pasid, path->stages),
        };
        atomic_init(&port->bus_master, true);
        atomic_init(&port->requester, source);
        pthread_mutex_init(&port->lock, NULL);
        unit->ports[unit->port_count++] = port;
    }
    pthread_mutex_unlock(&unit->ports_lock);
    return port;
}

void cw_port_set_bus_master(struct cw_port *port, bool enable) {
    atomic_store_explicit(&port->bus_master, enable, memory_order_release);
}

void cw_unit_set_queue(struct cw_unit *unit, uint64_t base, uint64_t size) {
    unit->queue_base = base;
    unit->queue_size = size;
    unit->head = unit->tail = 0;
}

static void invalidate_pages(struct cw_unit *unit, uint16_t domain, uint32_t pasid, uint64_t address, int mask) {
    uint64_t size = mask >= 52 ? UINT64_MAX : (0x1000ull << mask) - 1;
    uint64_t first = address & ~(size | 0xfff), last = first | size | 0xfff;
    pthread_mutex_lock(&unit->ports_lock);
    for (unsigned index = 0; index < unit->port_count; index++) {
        struct cw_port *port = unit->ports[index];
        pthread_mutex_lock(&port->lock);
        tlb_remove_range(&port->tlb, first, last, domain, pasid);
        pthread_mutex_unlock(&port->lock);
    }
    pthread_mutex_unlock(&unit->ports_lock);
    unit->invalidations++;
}

/* Serves one descriptor. Returns 1 if another may follow, 0 if not, -1 if it is malformed. */
static int serve(struct cw_unit *unit) {
    pthread_mutex_lock(&unit->registers_lock);
    uint64_t head = unit->head, tail = unit->tail;
    bool wrong = tail >= unit->queue_size || tail % 32;
    pthread_mutex_unlock(&unit->registers_lock);
    if (wrong) return -1;
    if (head == tail) return 0;
    uint64_t word[4];
    for (int index = 0; index < 4; index++)
        if (!ram_load64(&unit->ram, unit->queue_base + head + (uint64_t)index * 8, &word[index])) return -1;
    switch ((word[0] & 0xf) | (word[0] >> 9 & 7) << 4) {
    case 5: { /* wait */
        if (word[0] & 0xfffff180 || word[1] & 3 || word[2] | word[3]) return -1;
        uint32_t *status = word[0] & 0x20 ? ram_at(&unit->ram, word[1], 4) : NULL;
        unit->waits++;
        if (status) __atomic_store_n(status, (uint32_t)(word[0] >> 32), __ATOMIC_RELEASE);
        break;
    }
    case 6: { /* PASID-based IOTLB, pages of a PASID */
        int mask = (int)(word[1] & 0x3f);
        if (word[0] & 0xfff000000000f1c0 || word[1] & 0xf80 || word[2] | word[3]) return -1;
        if ((word[0] >> 4 & 3) != 3 || mask > 18) return -1;
        invalidate_pages(unit, (uint16_t)(word[0] >> 16), (uint32_t)(word[0] >> 32 & 0xfffff), word[1] & ~0xfffull, mask);
        break;
    }
    default: return -1;
    }
    pthread_mutex_lock(&unit->registers_lock);
    unit->head = (unit->head + 32) % unit->queue_size;
    pthread_mutex_unlock(&unit->registers_lock);
    return 1;
}

bool cw_ring(struct cw_unit *unit, uint64_t tail) {
    pthread_mutex_lock(&unit->registers_lock);
    unit->tail = tail;
    pthread_mutex_unlock(&unit->registers_lock);
    int status = 1;
    pthread_mutex_lock(&unit->queue_lock);
    for (uint64_t remaining = unit->queue_size / 32; remaining > 0 && status > 0; remaining--) status = serve(unit);
    pthread_mutex_unlock(&unit->queue_lock);
    return status >= 0;
}
