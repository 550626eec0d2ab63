#include "ranks.h"

#include <poll.h>
#include <sched.h>

#include "sleep.h"

namespace {

// How long a rank can be gone before the others ask.
constexpr int64_t SLICE_NS = 20'000'000;

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
    uint32_t round;
    auto arrived = [&] {
        round = other->round.load();
        return static_cast<int32_t>(round - wanted) >= 0;
    };
    // Whoever needs the very core that looks does not come while it looks.
    bool in_the_way = other->core.load(std::memory_order_relaxed) == sched_getcpu();
    if (!in_the_way && soon(arrived, PATIENCE_NS)) return true;
    // Whether it is gone is asked first: what it did before is seen after that.
    for (bool gone = false; !arrived(); gone = hung_up(pipe)) {
        if (gone) return false;
        sleep_on(&other->round, round, &other->asleep, OF_NODE, SLICE_NS);
    }
    return true;
}
