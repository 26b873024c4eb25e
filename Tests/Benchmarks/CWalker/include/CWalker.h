/* The VT-d unit's hot paths in plain C, to measure the Swift ones against: a port's IOTLB under a mutex, the
 * first-stage, second-stage and nested walks with their accessed and dirty bits, and the invalidation queue's
 * PASID-based page descriptors with their wait. The checks are those of Sources/VTd, the entries' and
 * registers' formats those of VT-d 4.1. What is set up once (context entry, PASID-table entry) comes in
 * checked, as the unit has it cached. */
#ifndef CWALKER_H
#define CWALKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cw_unit;
struct cw_port;

enum cw_stages { CW_FIRST = 1, CW_SECOND = 2, CW_BOTH = 3 };
enum cw_access { CW_READ = 1, CW_WRITE = 2 };

/* What the cached entries of a source say. */
struct cw_path {
    uint16_t domain;
    uint32_t pasid;
    enum cw_stages stages;
    uint64_t first_root;
    int first_levels;
    uint64_t second_root;
    int second_levels;
    bool write_protect, extended_accessed, supervisor, page_walk_snoop, second_accessed_dirty;
};

struct cw_segment {
    uint64_t address;
    uint64_t count;
};

/* RAM from 0 to low_size, and from 4 GiB on. Zeroed; NULL where there is no memory for it. */
struct cw_unit *cw_unit_create(uint64_t low_size, uint64_t high_size, int host_width, int guest_width,
                               bool gigabyte_pages);
void cw_unit_destroy(struct cw_unit *unit);
/* The bytes of the low RAM, to be filled. */
uint8_t *cw_unit_ram(struct cw_unit *unit);
/* Where the queue is: 256-bit descriptors. */
void cw_unit_set_queue(struct cw_unit *unit, uint64_t base, uint64_t size);

/* At most 8 a unit; NULL beyond. */
struct cw_port *cw_port_create(struct cw_unit *unit, uint16_t source, const struct cw_path *path);
void cw_port_set_bus_master(struct cw_port *port, bool enable);

/* Returns 0, or a fault reason. */
int cw_translate(struct cw_port *port, uint64_t address, uint64_t count, enum cw_access access,
                 struct cw_segment *segment);

/* The tail register is written. Returns false where a descriptor was wrong. */
bool cw_ring(struct cw_unit *unit, uint64_t tail);

/* What a device's thread does: translates each address in turn, `rounds` times over. Returns the sum of what
 * came out; -1 where a request was refused. */
uint64_t cw_translate_all(struct cw_port *port, const uint64_t *addresses, size_t count, size_t rounds);

uint64_t cw_hits(const struct cw_port *port);
uint64_t cw_misses(const struct cw_port *port);

/* CLOCK_MONOTONIC, and the calling thread's processor time, in nanoseconds. */
uint64_t cw_wall_time(void);
uint64_t cw_thread_time(void);
/* How often the calling thread gave its processor up to wait for something. */
uint64_t cw_thread_waits(void);

#endif
