/* First-stage (VT-d 3.6), second-stage (3.7) and nested (3.8) walks. Faults are the reason codes of 7.1.3. */
#include "internal.h"

enum { P = 1, RW = 2, US = 4, A = 0x20, D = 0x40, PS = 0x80, EA = 0x400 };
enum { SS_R = 1, SS_W = 2, SS_A = 0x100, SS_D = 0x200 };

static uint64_t low_bits(int count) { return (1ull << count) - 1; }

/* Returns -1 if an entry changed meanwhile. */
static int second_attempt(const struct cw_path *path, const struct rules *rules, const struct ram *ram,
                          uint64_t input, enum cw_access access, struct mapping *mapping) {
    uint64_t table = path->second_root, granted = SS_R | SS_W;
    for (int level = path->second_levels;; level--) {
        int shift = 12 + 9 * (level - 1);
        uint64_t place = table | (input >> shift & 0x1ff) << 3, entry;
        if (!ram_load64(ram, place, &entry)) return level == path->second_levels ? 0x7b : 0x78;
        if (!(entry & (SS_R | SS_W))) return 0x79;
        bool leaf = level == 1 || (level <= 3 && entry & PS);
        if (entry & (leaf ? rules->second_leaf : rules->second_table)[level]) return 0x7a;
        granted &= entry;
        if (access & CW_WRITE && !(granted & SS_W)) return 0x85;
        if (access & CW_READ && !(granted & SS_R)) return 0x86;
        bool dirty = true;
        if (path->second_accessed_dirty) {
            uint64_t updated = entry | SS_A, found;
            if (leaf && access & CW_WRITE) updated |= SS_D;
            if (updated != entry) {
                if (!path->page_walk_snoop) return 0x7c;
                if (!ram_compare_exchange64(ram, place, entry, updated, &found) || found != entry) return -1;
            }
            dirty = updated & SS_D;
        }
        table = entry & ADDRESS_BITS;
        if (leaf) {
            mapping->output = table & ~low_bits(shift);
            mapping->shift = shift;
            mapping->readable = granted & SS_R;
            mapping->writable = granted & SS_W && dirty;
            return 0;
        }
    }
}

int walk_second(const struct cw_path *path, const struct rules *rules, const struct ram *ram, uint64_t input,
                enum cw_access access, struct mapping *mapping) {
    int width = 12 + 9 * path->second_levels;
    if (rules->guest_width < width) width = rules->guest_width;
    if (input >> width) return 0x83;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        int fault = second_attempt(path, rules, ram, input, access, mapping);
        if (fault >= 0) return fault;
    }
    return 0x7d;
}

static uint64_t output_of(const struct mapping *mapping, uint64_t input) {
    return mapping->output | (input & low_bits(mapping->shift));
}

/* Finds the memory address of a first-stage entry. */
static int table_place(const struct cw_path *path, const struct rules *rules, const struct ram *ram,
                       uint64_t place, bool root, enum cw_access access, uint64_t *address) {
    struct mapping mapping;
    if (path->stages != CW_BOTH) {
        *address = place;
        return 0;
    }
    int fault = walk_second(path, rules, ram, place, access, &mapping);
    switch (fault) {
    case 0: *address = output_of(&mapping, place); return 0;
    case 0x83: return 0x74;
    case 0x85: return 0x77;
    case 0x86:
    case 0x79: return root ? 0x75 : 0x76;
    default: return fault;
    }
}

static int first_attempt(const struct cw_path *path, const struct rules *rules, const struct ram *ram,
                         uint64_t input, enum cw_access access, struct mapping *mapping) {
    uint64_t table = path->first_root, granted = RW | US;
    for (int level = path->first_levels;; level--) {
        bool root = level == path->first_levels;
        int shift = 12 + 9 * (level - 1), fault;
        uint64_t place = table | (input >> shift & 0x1ff) << 3, address, entry;
        if ((fault = table_place(path, rules, ram, place, root, CW_READ, &address))) return fault;
        if (!ram_load64(ram, address, &entry)) return root ? 0x73 : 0x70;
        if (!(entry & P)) return 0x71;
        bool leaf = level == 1 || (level <= 3 && entry & PS);
        if (entry & (leaf ? rules->first_leaf : rules->first_table)[level]) return 0x72;
        granted &= entry;
        if (!path->supervisor && !(granted & US)) return 0x81;
        bool writable = granted & RW || (path->supervisor && !path->write_protect);
        if (access & CW_WRITE && !writable) return 0x85;

        uint64_t updated = entry | A;
        if (path->extended_accessed) updated |= EA;
        if (leaf && access & CW_WRITE) updated |= D;
        if (updated != entry) {
            uint64_t found, ignored;
            if (!path->page_walk_snoop) return 0x90;
            if ((fault = table_place(path, rules, ram, place, root, CW_WRITE, &ignored))) return fault;
            if (!ram_compare_exchange64(ram, address, entry, updated, &found)) return 0x91;
            if (found != entry) return -1;
        }
        table = entry & ADDRESS_BITS;
        if (leaf) {
            mapping->output = table & ~low_bits(shift);
            mapping->shift = shift;
            mapping->readable = true;
            mapping->writable = writable && updated & D;
            return 0;
        }
    }
}

int walk_first(const struct cw_path *path, const struct rules *rules, const struct ram *ram, uint64_t input,
               enum cw_access access, struct mapping *mapping) {
    int64_t sign = (int64_t)input >> (11 + 9 * path->first_levels);
    if (sign != 0 && sign != -1) return 0x80;
    int fault = -1;
    for (int attempt = 0; attempt < ATTEMPTS && fault < 0; attempt++)
        fault = first_attempt(path, rules, ram, input, access, mapping);
    if (fault) return fault < 0 ? 0x91 : fault;
    if (path->stages != CW_BOTH) return 0;

    struct mapping lower;
    uint64_t middle = output_of(mapping, input);
    fault = walk_second(path, rules, ram, middle, access, &lower);
    if (fault) return fault == 0x83 ? 0x84 : fault;
    if (lower.shift < mapping->shift) mapping->shift = lower.shift;
    mapping->output = output_of(&lower, middle) & ~low_bits(mapping->shift);
    mapping->readable = mapping->readable && lower.readable;
    mapping->writable = mapping->writable && lower.writable;
    return 0;
}
