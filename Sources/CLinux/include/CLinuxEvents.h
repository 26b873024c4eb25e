// The part of <linux/eventpoll.h> of Linux 6.12 that Nestling uses.
#pragma once

#include <stdint.h>

enum {
    EPOLL_CTL_ADD = 1,
    EPOLL_CTL_DEL = 2,
    EPOLL_CTL_MOD = 3,
};

enum {
    EPOLLIN = 0x1,
    EPOLLOUT = 0x4,
    EPOLLERR = 0x8,
    EPOLLHUP = 0x10,
    EPOLLRDHUP = 0x2000,
};

#define EPOLLET 0x80000000u

// Packed on x86-64 (EPOLL_PACKED).
struct epoll_event {
    uint32_t events;
    uint64_t data;
} __attribute__((packed));
