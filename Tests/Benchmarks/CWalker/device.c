/* The device's loop, in a separate file so that the compiler does not inline what it calls. */
#include "CWalker.h"

uint64_t cw_translate_all(struct cw_port *port, const uint64_t *addresses, size_t count, size_t rounds) {
    uint64_t sum = 0;
    for (size_t round = 0; round < rounds; round++) {
        for (size_t index = 0; index < count; index++) {
            struct cw_segment segment;
            if (cw_translate(port, addresses[index], 8, CW_READ, &segment)) return UINT64_MAX;
            sum += segment.address + segment.count;
        }
    }
    return sum;
}
