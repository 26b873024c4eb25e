/* The VT-d unit's hot paths in plain C, as a baseline for the Swift ones: a port's IOTLB under a mutex, the
 * first-stage, second-stage and nested walks with accessed and dirty bits, and the invalidation queue's
 * PASID-based page descriptors and waits. The checks are those of Sources/VTd; the formats of entries and
 * registers are those of VT-d 4.1. Entries that are set up once (context entry, PASID-table entry) are passed
 * in already checked, as the unit has them cached. */
#ifndef CWALKER_H
#define CWALKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cw_unit;
struct cw_port;

enum cw_stages { CW_FIRST = 1, CW_SECOND = 2, CW_BOTH = 3 };
enum cw_access { CW_READ = 1, CW_WRITE = 2 };

/* The cached entries of a source. */
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

/* Creates a unit with zeroed RAM from 0 to low_size and from 4 GiB on. Returns NULL if there is no memory. */
struct cw_unit *cw_unit_create(uint64_t low_size, uint64_t high_size, int host_width, int guest_width,
                               bool gigabyte_pages);
void cw_unit_destroy(struct cw_unit *unit);
/* Returns the low RAM, for the caller to fill. */
uint8_t *cw_unit_ram(struct cw_unit *unit);
/* Sets the place of the queue, which has 256-bit descriptors. */
void cw_unit_set_queue(struct cw_unit *unit, uint64_t base, uint64_t size);

/* Creates a port. Returns NULL beyond 8 per unit. */
struct cw_port *cw_port_create(struct cw_unit *unit, uint16_t source, const struct cw_path *path);
void cw_port_set_bus_master(struct cw_port *port, bool enable);

/* Returns 0, or a fault reason. */
int cw_translate(struct cw_port *port, uint64_t address, uint64_t count, enum cw_access access,
                 struct cw_segment *segment);

/* Writes the tail register. Returns false if a descriptor is malformed. */
bool cw_ring(struct cw_unit *unit, uint64_t tail);

/* Translates each address in turn, `rounds` times, as a device's thread does. Returns the sum of the results;
 * -1 if a request was refused. */
uint64_t cw_translate_all(struct cw_port *port, const uint64_t *addresses, size_t count, size_t rounds);

uint64_t cw_hits(const struct cw_port *port);
uint64_t cw_misses(const struct cw_port *port);

/* Return CLOCK_MONOTONIC and the calling thread's processor time, in nanoseconds. */
uint64_t cw_wall_time(void);
uint64_t cw_thread_time(void);
/* Returns how often the calling thread blocked (voluntary context switches). */
uint64_t cw_thread_waits(void);

#endif
