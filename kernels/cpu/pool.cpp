// Threads that run a list of steps together: awake through a run, asleep soon after it.
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <new>

#include "instructions.h"
#include "lane.h"
#include "panels.h"

namespace {

// How long a thread stays awake for the next run. The loop's own work between two steps is shorter.
constexpr int64_t AWAKE_NS = 200'000;

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1'000'000'000LL + t.tv_nsec;
}

void futex(std::atomic<uint32_t>* word, int operation, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(word), operation, value, nullptr, nullptr, 0);
}

// Threads come and wait for the last one. Spinning yields only when it has lasted far longer than
// any op: an early yield on a busy machine hands a whole time slice away at every step.
struct Barrier {
    alignas(64) std::atomic<int32_t> came{0};
    alignas(64) std::atomic<uint32_t> round{0};

    void meet(int32_t count) {
        if (count == 1) return;
        uint32_t mine = round.load(std::memory_order_acquire);
        if (came.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
            came.store(0, std::memory_order_relaxed);
            round.store(mine + 1, std::memory_order_release);
            return;
        }
        for (int64_t spins = 0; round.load(std::memory_order_acquire) == mine; spins++) {
            __builtin_ia32_pause();
            if (spins > 50'000) sched_yield();
        }
    }
};

}  // namespace

struct Pool {
    int32_t threads;
    pthread_t* others;
    Lane* lanes;
    void* shared;
    Barrier barrier;
    alignas(64) std::atomic<uint32_t> run{0};  // changes when there is work, or the pool closes
    alignas(64) std::atomic<int32_t> asleep{0};
    bool closing = false;
    // The run's.
    const Instructions* instructions;
    void (*work)(Pool*, Lane*);
    const Step* steps;
    int64_t count;
    volatile int64_t* progress;
    std::atomic<int64_t> tickets[2];
    int64_t failed = 0;  // lane 0's alone
    // What is packed instead.
    const Matrix* rows;
    const Panels* weight;
};

namespace {

void meet(Lane* lane) {
    Pool* pool = static_cast<Pool*>(lane->pool);
    pool->barrier.meet(pool->threads);
}

// Once the last barrier is passed the caller may begin the next run: what a lane needs of this one
// it reads before.
void run_lane(Pool* pool, Lane* lane) {
    const Instructions* instructions = pool->instructions;
    const Step* steps = pool->steps;
    const int64_t count = pool->count;
    volatile int64_t* progress = lane->index == 0 ? pool->progress : nullptr;
    instructions->begin();
    for (int64_t i = 0; i < count; i++) {
        // Two counters take turns: the one of the next step is cleared while nobody uses it.
        lane->tickets = &pool->tickets[i & 1];
        if (lane->index == 0) pool->tickets[(i + 1) & 1].store(0, std::memory_order_relaxed);
        if (progress) *progress = steps[i].mark;
        int32_t failed = instructions->ops[steps[i].kind](steps[i].args, lane);
        if (failed && lane->index == 0) pool->failed = i + 1;
        pool->barrier.meet(pool->threads);
        if (failed) break;
    }
    instructions->end();
}

void pack_lane(Pool* pool, Lane* lane) {
    int64_t panels = panels_of(*pool->weight);
    pool->instructions->pack(*pool->rows, *pool->weight, lane->first(panels), lane->last(panels));
    pool->barrier.meet(pool->threads);
}

void* live(void* given) {
    Lane* lane = static_cast<Lane*>(given);
    Pool* pool = static_cast<Pool*>(lane->pool);
    uint32_t seen = 0;
    for (;;) {
        int64_t since = now_ns();
        for (int64_t spins = 1; pool->run.load(std::memory_order_acquire) == seen; spins++) {
            __builtin_ia32_pause();
            if (spins % 256 || now_ns() - since < AWAKE_NS) continue;
            pool->asleep.fetch_add(1);
            futex(&pool->run, FUTEX_WAIT_PRIVATE, seen);
            pool->asleep.fetch_sub(1);
            since = now_ns();
        }
        seen++;
        if (pool->closing) return nullptr;
        pool->work(pool, lane);
    }
}

void wake(Pool* pool) {
    pool->run.fetch_add(1);
    if (pool->asleep.load()) futex(&pool->run, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

void pin(pthread_t thread, int32_t core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    pthread_setaffinity_np(thread, sizeof set, &set);
}

}  // namespace

SHOAL_API Pool* shoal_pool_open(int32_t threads, const int32_t* cores) {
    Pool* pool = new (std::nothrow) Pool();
    if (!pool) return nullptr;
    pool->threads = threads;
    pool->others = new pthread_t[threads];
    pool->lanes = new Lane[threads];
    if (posix_memalign(&pool->shared, 4096, SHARED_BYTES)) return nullptr;
    for (int32_t i = 0; i < threads; i++) {
        void* scratch = nullptr;
        if (posix_memalign(&scratch, 4096, SCRATCH_BYTES)) return nullptr;
        pool->lanes[i] = Lane{i, threads, nullptr, nullptr, scratch, pool->shared, meet, pool};
    }
    for (int32_t i = 1; i < threads; i++) {
        if (pthread_create(&pool->others[i], nullptr, live, &pool->lanes[i])) return nullptr;
        if (cores) pin(pool->others[i], cores[i]);
    }
    return pool;
}

SHOAL_API void shoal_pool_close(Pool* pool) {
    pool->closing = true;
    wake(pool);
    for (int32_t i = 1; i < pool->threads; i++) pthread_join(pool->others[i], nullptr);
    for (int32_t i = 0; i < pool->threads; i++) free(pool->lanes[i].scratch);
    free(pool->shared);
    delete[] pool->others;
    delete[] pool->lanes;
    delete pool;
}

SHOAL_API int64_t shoal_run(Pool* pool, const Step* steps, int64_t count, const Sizes* sizes,
                            volatile int64_t* progress) {
    if (count == 0) return 0;  // no barrier would keep the other lanes in step
    pool->work = run_lane;
    pool->instructions = chosen_instructions();
    pool->steps = steps;
    pool->count = count;
    pool->progress = progress;
    pool->failed = 0;
    pool->tickets[0].store(0);
    for (int32_t i = 0; i < pool->threads; i++) pool->lanes[i].sizes = sizes;
    wake(pool);
    run_lane(pool, &pool->lanes[0]);
    return pool->failed;
}

SHOAL_API void shoal_pack(Pool* pool, const Matrix* rows, const Panels* weight) {
    pool->work = pack_lane;
    pool->instructions = chosen_instructions();
    pool->rows = rows;
    pool->weight = weight;
    wake(pool);
    pack_lane(pool, &pool->lanes[0]);
}

SHOAL_API int64_t shoal_packed_bytes(const Panels* weight) {
    return panels_of(*weight) * panel_elements(*weight) * (weight->format == F32_PANELS ? 4 : 2);
}
