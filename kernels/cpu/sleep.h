// Sleeping until a word of memory changes.
#pragma once
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

constexpr int64_t SECOND_NS = 1'000'000'000;

// Whether the word is this process's own, or lies in memory that several map.
enum Waiters : int { OF_PROCESS = FUTEX_PRIVATE_FLAG, OF_NODE = 0 };

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

// Sleeps while the word is `seen`, for at most so long (0: without end). `asleep` counts who does.
inline void sleep_on(std::atomic<uint32_t>* word, uint32_t seen, std::atomic<uint32_t>* asleep,
                     Waiters waiters, int64_t most_ns) {
    timespec most = {most_ns / SECOND_NS, most_ns % SECOND_NS};
    asleep->fetch_add(1);
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAIT | waiters, seen,
            most_ns ? &most : nullptr, nullptr, 0);
    asleep->fetch_sub(1);
}

// Whoever has changed the word wakes those that sleep on it.
inline void wake(std::atomic<uint32_t>* word, std::atomic<uint32_t>* asleep, Waiters waiters) {
    if (!asleep->load()) return;
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), FUTEX_WAKE | waiters, INT32_MAX, nullptr,
            nullptr, 0);
}
