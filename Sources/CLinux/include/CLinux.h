// The part of the kernel's user-space interface that Nestling uses: structures and request numbers under the kernel's
// own names, and the calls that Swift cannot make itself.
//
// Nothing of <linux/…> is included: Debian 12's headers are Linux 6.1's and lack iommufd and the VFIO device files. A
// test compares every size, offset and number here with the headers of the kernel that the lab boots.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "CLinuxEvents.h"
#include "CLinuxIOMMUFD.h"
#include "CLinuxKVM.h"
#include "CLinuxLater.h"
#include "CLinuxNetwork.h"
#include "CLinuxVFIO.h"
#include "CLinuxVhost.h"

// MARK: Calls. Each returns the call's result, or -errno.

/// Calls ioctl(2), again if a signal interrupts it.
static inline int nestling_ioctl(int descriptor, unsigned int request, void *argument) {
    int result;
    do
        result = ioctl(descriptor, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/// Calls ioctl(2) with a number as its argument.
static inline int nestling_ioctl_value(int descriptor, unsigned int request, unsigned long argument) {
    int result;
    do
        result = ioctl(descriptor, request, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

/// Calls KVM_RUN. Does not retry after a signal, because a signal makes a vCPU return: -EINTR is a result.
static inline int nestling_kvm_run(int vcpu) {
    int result = ioctl(vcpu, KVM_RUN, 0ul);
    return result < 0 ? -errno : result;
}

/// Calls open(2), which Swift does not import because its number of arguments varies.
static inline int nestling_open(const char *path, int flags, unsigned int mode) {
    int result;
    do
        result = open(path, flags | O_CLOEXEC, mode);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

// GNU functions that the Glibc module does not export; see CLinux.c.

int nestling_eventfd(void);
int nestling_epoll_create(void);
/// - Parameter operation: one of EPOLL_CTL_ADD, EPOLL_CTL_MOD and EPOLL_CTL_DEL.
int nestling_epoll_control(int epoll, int operation, int descriptor, uint32_t events, uint64_t data);
/// Waits up to `milliseconds`, or without limit for -1. Returns the number of events; 0 also if a signal interrupts it.
int nestling_epoll_wait(int epoll, struct epoll_event *events, int capacity, int milliseconds);
/// Calls ioctl(2) with a network interface as its argument (struct ifreq).
/// - Parameters:
///   - name: the request's name, and afterwards the answer's. IFNAMSIZ bytes, the last of them zero.
///   - flags: ifr_flags of the request, and afterwards of the answer.
int nestling_interface_request(int descriptor, unsigned int request, char name[16], unsigned int *flags);
/// page_shift: 0 for standard pages, 1 for huge pages of the default size, else the logarithm of the page size.
int nestling_memfd_create(const char *name, unsigned int page_shift);
int nestling_accept(int listener);
#define NESTLING_PASSED_LIMIT 16
/// Calls recvmsg(2). Stores the descriptors that come with the bytes (SCM_RIGHTS) as close-on-exec; the kernel closes
/// those beyond the limit. Returns the number of bytes.
long nestling_receive(int from, void *into, size_t count, int passed[NESTLING_PASSED_LIMIT], unsigned int *passed_count);
/// Calls sendmsg(2) with open descriptors (SCM_RIGHTS). Does not wait: -EAGAIN if the socket has no room. A peer that is
/// gone is -EPIPE, not a signal. Returns the number of bytes sent; the descriptors went with the first of them.
/// - Parameter passed_count: at most NESTLING_PASSED_LIMIT.
long nestling_send(int to, const void *from, size_t count, const int *passed, unsigned int passed_count);
/// Calls socketpair(2): two connected Unix stream sockets, which block.
int nestling_socket_pair(int ends[2]);
/// Returns the number of bytes written.
long nestling_getrandom(void *into, size_t count);
/// Blocks SIGINT, SIGTERM and SIGHUP for this thread and those it starts later; returns a descriptor that receives
/// them.
int nestling_termination_signals(void);
/// Returns the number of a pending signal; 0 for none.
int nestling_take_signal(int descriptor);
int nestling_punch_hole(int descriptor, int64_t offset, int64_t count);
int nestling_zero_range(int descriptor, int64_t offset, int64_t count);
/// Takes a shared lock on one byte, which belongs to the open file (F_OFD_SETLK).
int nestling_lock_byte(int descriptor, int64_t at);
/// Returns 1 if another open file has a lock on the byte, shared or exclusive; else 0.
int nestling_byte_is_locked(int descriptor, int64_t at);
/// Opens /dev/null as each of the descriptors 0, 1 and 2 that is closed. Otherwise a file that is opened later becomes
/// standard input, output or error.
int nestling_hold_standard_descriptors(void);
/// Ends the process after that many seconds, even if its threads are blocked, and restores the terminal first. A second
/// call changes only the status.
void nestling_end_within(unsigned int seconds, int status);
/// Joins a thread (a pthread_t) if it ends in time: returns 0 then, -ETIMEDOUT otherwise.
int nestling_join_within(unsigned long thread, unsigned int milliseconds);
// Asks for SIGTERM when the parent ends (prctl(2), PR_SET_PDEATHSIG); returns -ESRCH if `parent` has ended already.
int nestling_end_with_parent(int parent);
/// The most descriptors that nestling_start_program passes.
#define NESTLING_STARTED_LIMIT 8
/// Starts the program `arguments[0]`, which is looked up in PATH, and waits for execve(2). Its standard input is
/// /dev/null, its standard output is `output` (/dev/null if negative), its standard error is `errors`, and the passed
/// descriptors are 3, 4 and so on. It has no other descriptor, the default signal dispositions, an empty signal mask and
/// a session of its own. The kernel kills it when the calling thread ends (PR_SET_PDEATHSIG), unless it has changed its
/// user.
/// - Returns: its process id, with a pidfd in `pidfd`. If the program cannot be executed, the errno of execve(2).
int nestling_start_program(
    char *const arguments[], const int passed[], unsigned int passed_count, int output, int errors, int *pidfd);
int nestling_signal_program(int pidfd, int signal);
/// Asks for the end of a program, and releases its process id at its end.
/// - Returns: 0 while it runs, 1 after an exit with the status in `code`, 2 after the signal in `code`.
int nestling_program_end(int process, int *code);
void nestling_name_thread(const char *name);
/// Makes input arrive as it is typed. A signal that ends a crashing process restores the terminal first.
int nestling_make_terminal_raw(void);
/// Restores the mode from before nestling_make_terminal_raw, which must have succeeded.
void nestling_restore_terminal(void);
long nestling_thread_id(void);
/// Involuntary context switches of the calling thread.
long nestling_thread_preemptions(void);

// MARK: Single accesses to memory that a guest writes at the same time.

static inline uint16_t nestling_load16(const void *at) { return __atomic_load_n((const uint16_t *)at, __ATOMIC_ACQUIRE); }
static inline uint32_t nestling_load32(const void *at) { return __atomic_load_n((const uint32_t *)at, __ATOMIC_ACQUIRE); }
/* Always inlined: each level of each page-table walk is one load. */
__attribute__((always_inline)) static inline uint64_t nestling_load64(const void *at) { return __atomic_load_n((const uint64_t *)at, __ATOMIC_ACQUIRE); }
static inline void nestling_store16(void *at, uint16_t value) { __atomic_store_n((uint16_t *)at, value, __ATOMIC_RELEASE); }
static inline void nestling_store32(void *at, uint32_t value) { __atomic_store_n((uint32_t *)at, value, __ATOMIC_RELEASE); }
static inline void nestling_store64(void *at, uint64_t value) { __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE); }

/// Returns the former value.
static inline uint64_t nestling_compare_exchange64(void *at, uint64_t expected, uint64_t desired) {
    __atomic_compare_exchange_n((uint64_t *)at, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return expected;
}
