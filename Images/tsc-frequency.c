/* tsc-frequency: prints the frequency of this machine's time stamp counter in kHz, measured against CLOCK_MONOTONIC over
 * 0.2 s.
 *   gcc -O2 -o tsc-frequency Images/tsc-frequency.c && ./tsc-frequency
 *
 * The lab passes this frequency to the outer guest (tsc_early_khz=): QEMU's TCG derives the guest's counter from the
 * machine's. On a busy machine, the outer kernel's first measurement is wrong by more than the 250 ppm that KVM
 * tolerates. KVM then gives its guests a counter that does not match their deadline timers. */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

struct moment {
    uint64_t nanoseconds, ticks;
};

/* Reads both clocks at once. Of several readings it returns the one that took the fewest ticks, so that a preemption
 * between the two clocks does not count. */
static struct moment now(void) {
    struct moment best = {0, 0};
    uint64_t shortest = UINT64_MAX;
    for (int i = 0; i < 64; i++) {
        struct timespec time;
        uint64_t before = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC, &time);
        uint64_t after = __rdtsc();
        if (after - before < shortest) {
            shortest = after - before;
            best.nanoseconds = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
            best.ticks = before + (after - before) / 2;
        }
    }
    return best;
}

int main(void) {
    struct moment first = now();
    struct timespec pause = {0, 200000000};
    while (nanosleep(&pause, &pause) != 0) {
    }
    struct moment second = now();
    double milliseconds = (double)(second.nanoseconds - first.nanoseconds) / 1e6;
    printf("%.0f\n", (double)(second.ticks - first.ticks) / milliseconds);
    return 0;
}
