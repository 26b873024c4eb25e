#define _GNU_SOURCE
#include "CLinux.h"

#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>

#define ANSWER(call)                      \
    ({                                    \
        __typeof__(call) result;          \
        do                                \
            result = (call);              \
        while (result < 0 && errno == EINTR); \
        result < 0 ? -errno : result;     \
    })

int nestling_eventfd(void) { return ANSWER(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

// glibc's <sys/epoll.h> would declare the structure of CLinuxEvents.h again, so these are the system calls themselves.

int nestling_epoll_create(void) { return ANSWER((int)syscall(SYS_epoll_create1, O_CLOEXEC)); }

int nestling_epoll_control(int epoll, int operation, int descriptor, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data = data};
    return ANSWER((int)syscall(SYS_epoll_ctl, epoll, operation, descriptor, &event));
}

int nestling_epoll_wait(int epoll, struct epoll_event *events, int capacity, int milliseconds) {
    int count = (int)syscall(SYS_epoll_wait, epoll, events, capacity, milliseconds);
    if (count >= 0) return count;
    return errno == EINTR ? 0 : -errno;
}

int nestling_interface_request(int descriptor, unsigned int request, char name[16], unsigned int *flags) {
    struct ifreq interface = {.ifr_flags = (short)*flags};
    _Static_assert(sizeof interface.ifr_name == 16, "IFNAMSIZ");
    memcpy(interface.ifr_name, name, sizeof interface.ifr_name);
    int result = nestling_ioctl(descriptor, request, &interface);
    if (result < 0) return result;
    memcpy(name, interface.ifr_name, sizeof interface.ifr_name);
    *flags = (unsigned short)interface.ifr_flags;
    return result;
}

int nestling_memfd_create(const char *name, unsigned int page_shift) {
    unsigned int flags = MFD_CLOEXEC;
    if (page_shift > 0) flags |= MFD_HUGETLB;
    // MFD_HUGE_SHIFT: bits 31:26.
    if (page_shift > 1) flags |= page_shift << 26;
    return ANSWER(memfd_create(name, flags));
}

int nestling_accept(int listener) { return ANSWER(accept4(listener, NULL, NULL, SOCK_CLOEXEC)); }

long nestling_receive(int from, void *into, size_t count, int passed[NESTLING_PASSED_LIMIT], unsigned int *passed_count) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * NESTLING_PASSED_LIMIT)];
    } control;
    struct iovec part = {.iov_base = into, .iov_len = count};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    *passed_count = 0;
    long result = ANSWER(recvmsg(from, &message, MSG_CMSG_CLOEXEC));
    if (result < 0) return result;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t found = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        // The control buffer limits the count.
        memcpy(passed, CMSG_DATA(header), found * sizeof(int));
        *passed_count = (unsigned int)found;
    }
    return result;
}

long nestling_send(int to, const void *from, size_t count, const int *passed, unsigned int passed_count) {
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int) * NESTLING_PASSED_LIMIT)];
    } control;
    struct iovec part = {.iov_base = (void *)from, .iov_len = count};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed_count > NESTLING_PASSED_LIMIT) return -EINVAL;
    if (passed_count > 0) {
        size_t size = sizeof(int) * passed_count;
        memset(&control, 0, sizeof control);
        control.header.cmsg_len = CMSG_LEN(size);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.header), passed, size);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(size);
    }
    return ANSWER(sendmsg(to, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

int nestling_socket_pair(int ends[2]) { return ANSWER(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)); }

long nestling_getrandom(void *into, size_t count) { return ANSWER(getrandom(into, count, 0)); }

int nestling_termination_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    return ANSWER(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int nestling_take_signal(int descriptor) {
    struct signalfd_siginfo info;
    return read(descriptor, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

int nestling_punch_hole(int descriptor, int64_t offset, int64_t count) {
    return ANSWER(fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, count));
}

int nestling_zero_range(int descriptor, int64_t offset, int64_t count) {
    return ANSWER(fallocate(descriptor, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, count));
}

int nestling_lock_byte(int descriptor, int64_t at) {
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return ANSWER(fcntl(descriptor, F_OFD_SETLK, &lock));
}

int nestling_byte_is_locked(int descriptor, int64_t at) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    int result = ANSWER(fcntl(descriptor, F_OFD_GETLK, &lock));
    return result < 0 ? result : lock.l_type != F_UNLCK;
}

int nestling_hold_standard_descriptors(void) {
    for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; descriptor++) {
        if (fcntl(descriptor, F_GETFD) >= 0 || errno != EBADF) continue;
        // open(2) returns the lowest free number: this one.
        int held = ANSWER(open("/dev/null", descriptor == STDIN_FILENO ? O_RDONLY : O_WRONLY));
        if (held < 0) return held;
    }
    return 0;
}

// Numbers of system calls that are newer than Debian 12's oldest headers.
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

/// Runs in the child of vfork(2), which shares the parent's memory: only system calls, and no change of that memory but
/// for errno. Returns if the program cannot be executed.
static void become_program(
    char *const arguments[], const int passed[], unsigned int count, int output, int errors, int parent) {
    // The kernel's own structure, with SIG_DFL. The C library's function refuses the signals 32 and 33, which may be
    // ignored. Fails for SIGKILL and SIGSTOP.
    unsigned long standard[4] = {0};
    for (int signal = 1; signal < NSIG; signal++) syscall(SYS_rt_sigaction, signal, standard, NULL, sizeof standard[3]);
    // Away from the terminal, whose signals are for the parent.
    setsid();
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return;
    // The parent may have ended before the call.
    if (getppid() != parent) _exit(1);

    // First move each descriptor out of the way of the numbers that the others get.
    int first = STDERR_FILENO + 1, past = first + (int)count;
    int moved[NESTLING_STARTED_LIMIT], null = open("/dev/null", O_RDWR), messages = fcntl(errors, F_DUPFD, past);
    if (null < 0 || messages < 0) return;
    int results = fcntl(output < 0 ? null : output, F_DUPFD, past);
    if (results < 0) return;
    for (unsigned int index = 0; index < count; index++) {
        moved[index] = fcntl(passed[index], F_DUPFD, past);
        if (moved[index] < 0) return;
    }
    null = fcntl(null, F_DUPFD, past);
    if (null < 0) return;
    if (dup2(null, STDIN_FILENO) < 0 || dup2(results, STDOUT_FILENO) < 0 || dup2(messages, STDERR_FILENO) < 0) return;
    for (unsigned int index = 0; index < count; index++) {
        if (dup2(moved[index], first + (int)index) < 0) return;
    }
    if (syscall(SYS_close_range, past, ~0u, 0) < 0) {
        // Linux before 5.9.
        struct rlimit limit;
        if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
        for (rlim_t descriptor = (rlim_t)past; descriptor < limit.rlim_cur; descriptor++) close((int)descriptor);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(arguments[0], arguments);
}

int nestling_start_program(
    char *const arguments[], const int passed[], unsigned int passed_count, int output, int errors, int *pidfd) {
    if (passed_count > NESTLING_STARTED_LIMIT) return -EINVAL;
    int parent = getpid();
    // No handler of this process may run in the child.
    sigset_t all, earlier;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &earlier);
    // Set by the child, in the parent's memory.
    volatile int failure = 0;
    pid_t child = vfork();
    if (child == 0) {
        become_program(arguments, passed, passed_count, output, errors, parent);
        failure = errno;
        _exit(127);
    }
    if (child < 0) failure = errno;
    pthread_sigmask(SIG_SETMASK, &earlier, NULL);
    if (child < 0) return -failure;
    if (failure == 0) {
        *pidfd = (int)syscall(SYS_pidfd_open, child, 0);
        if (*pidfd >= 0) return child;
        failure = errno;
        kill(child, SIGKILL);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
    return -failure;
}

int nestling_signal_program(int pidfd, int signal) {
    return ANSWER((int)syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

int nestling_program_end(int process, int *code) {
    int status = 0;
    int result = ANSWER(waitpid(process, &status, WNOHANG));
    if (result <= 0) return result;
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status);
    return WIFEXITED(status) ? 1 : 2;
}

int nestling_join_within(unsigned long thread, unsigned int milliseconds) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += milliseconds / 1000;
    end.tv_nsec += milliseconds % 1000 * 1000000l;
    if (end.tv_nsec >= 1000000000l) {
        end.tv_nsec -= 1000000000l;
        end.tv_sec++;
    }
    return -pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &end);
}

int nestling_end_with_parent(int parent) {
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0) return -errno;
    // The kernel sends no signal for a parent that ended before the call.
    if (getppid() == parent) return 0;
    prctl(PR_SET_PDEATHSIG, 0);
    return -ESRCH;
}

void nestling_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

// C keeps the terminal's mode, because signal handlers need it.
static struct termios terminal_before;
static volatile sig_atomic_t terminal_is_raw;

// A signal handler may call this: tcgetpgrp(3) and tcsetattr(3) are safe there (signal-safety(7)).
static void put_terminal_back(void) {
    // In the background, the terminal belongs to the shell, and setting it would stop this process (SIGTTOU).
    pid_t foreground = tcgetpgrp(STDIN_FILENO);
    if (foreground >= 0 && foreground != getpgrp()) return;
    // TCSADRAIN would wait for a terminal that takes no output.
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal_before);
}

static void restore_terminal(int signal) {
    put_terminal_back();
    // SA_RESETHAND restored the default action, which the raised signal now takes.
    raise(signal);
}

static atomic_int status_at_end;

static void end_now(int signal) {
    (void)signal;
    if (terminal_is_raw) put_terminal_back();
    _exit(status_at_end);
}

void nestling_end_within(unsigned int seconds, int status) {
    static atomic_flag begun = ATOMIC_FLAG_INIT;
    status_at_end = status;
    if (atomic_flag_test_and_set(&begun)) return;
    struct sigaction action = {.sa_handler = end_now};
    sigemptyset(&action.sa_mask);
    sigaction(SIGALRM, &action, NULL);
    alarm(seconds);
}

int nestling_make_terminal_raw(void) {
    if (tcgetattr(STDIN_FILENO, &terminal_before) < 0) return -errno;
    struct sigaction action = {.sa_handler = restore_terminal, .sa_flags = SA_RESETHAND | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    const int crashes[] = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV};
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++) sigaction(crashes[i], &action, NULL);

    struct termios raw = terminal_before;
    raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    raw.c_oflag |= OPOST;
    raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | ISIG);
    raw.c_cflag = (raw.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
    terminal_is_raw = 1;
    return tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0 ? -errno : 0;
}

void nestling_restore_terminal(void) {
    put_terminal_back();
    terminal_is_raw = 0;
}

long nestling_thread_id(void) { return syscall(SYS_gettid); }

long nestling_thread_preemptions(void) {
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}
