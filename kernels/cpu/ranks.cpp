#include "ranks.h"

#include <immintrin.h>
#include <poll.h>
#include <sched.h>

#include "sleep.h"

namespace {

// A thread that slept is back after about as long.
constexpr int64_t AWAKE_NS = 50'000;

// How long a rank can be gone before the others ask.
constexpr int64_t SLICE_NS = 20'000'000;

bool reached(uint32_t round, uint32_t wanted) { return static_cast<int32_t>(round - wanted) >= 0; }

// Looks for a while whether it comes; not at all where it needs the very core that looks.
bool comes_soon(const Arrival* other, uint32_t wanted) {
    bool in_the_way = other->core.load(std::memory_order_relaxed) == sched_getcpu();
    int64_t since = 0;
    for (int64_t spins = 1;; spins++) {
        if (reached(other->round.load(std::memory_order_acquire), wanted)) return true;
        if (in_the_way) return false;
        __builtin_ia32_pause();
        if (spins % 64) continue;
        if (!since) since = now_ns();
        if (now_ns() - since > AWAKE_NS) return false;
    }
}

bool hung_up(int32_t pipe) {
    pollfd looked{pipe, 0, 0};
    return poll(&looked, 1, 0) > 0 && (looked.revents & (POLLHUP | POLLERR | POLLNVAL));
}

}  // namespace

void arrive(Arrival* mine, uint32_t round) {
    mine->core.store(sched_getcpu(), std::memory_order_relaxed);
    mine->round.store(round);
    wake(&mine->round, &mine->asleep, OF_NODE);
}

bool await(Arrival* other, uint32_t wanted, int32_t pipe) {
    if (comes_soon(other, wanted)) return true;
    // Whether it is gone is asked first: what it did before is seen after that.
    for (bool gone = false;; gone = hung_up(pipe)) {
        uint32_t round = other->round.load();
        if (reached(round, wanted)) return true;
        if (gone) return false;
        sleep_on(&other->round, round, &other->asleep, OF_NODE, SLICE_NS);
    }
}
