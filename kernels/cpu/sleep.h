// Waiting until a word of memory changes: awake at first, then asleep.
#pragma once
#include <immintrin.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

constexpr int64_t SECOND_NS = 1'000'000'000;

// How long a thread stays awake for those that are late: longer than running ones differ by. One
// that is later than that is not running, and a core that sleeps meanwhile serves whoever took its
// place.
constexpr int64_t PATIENCE_NS = 50'000;

// Whether the word is this process's own, or lies in memory that several map.
enum Waiters : int { OF_PROCESS = FUTEX_PRIVATE_FLAG, OF_NODE = 0 };

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

// Looks for so long whether it is done, and gives what it saw last.
template <class Done>
bool soon(Done done, int64_t most_ns) {
    int64_t since = 0;
    for (int64_t spins = 1; !done(); spins++) {
        __builtin_ia32_pause();
        if (spins % 64) continue;
        if (!since) since = now_ns();
        if (now_ns() - since > most_ns) return false;
    }
    return true;
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
