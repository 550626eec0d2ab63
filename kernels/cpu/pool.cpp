// Threads that run a list of steps together: awake through a run, asleep soon after it.
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "cpus.h"
#include "instructions.h"
#include "lane.h"
#include "panels.h"
#include "sleep.h"

namespace {

// How long a thread stays awake for the next run. The loop's own work between two steps is shorter up
// to some 64 rows; beside steps of more it counts for little that threads are woken.
constexpr int64_t AWAKE_NS = 200'000;

constexpr int64_t PAGE = 4096, LARGE_PAGE = 2 << 20;

constexpr uint32_t ROUND_TO_NEAREST_FLUSH_DENORMALS = 0x9fc0;  // MXCSR, no exception raised

// Threads come and wait for the last one.
struct Barrier {
    alignas(64) std::atomic<int32_t> came{0};
    alignas(64) std::atomic<uint32_t> round{0};
    std::atomic<uint32_t> asleep{0};

    void meet(int32_t count) {
        if (count == 1) return;
        uint32_t mine = round.load(std::memory_order_acquire);
        if (came.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
            came.store(0, std::memory_order_relaxed);
            round.store(mine + 1);
            wake(&round, &asleep, OF_PROCESS);
            return;
        }
        auto passed = [&] { return round.load(std::memory_order_acquire) != mine; };
        if (soon(passed, PATIENCE_NS)) return;
        while (!passed()) sleep_on(&round, mine, &asleep, OF_PROCESS, 0);
    }
};

}  // namespace

struct Pool {
    int32_t threads;
    std::atomic<int32_t>* cpu_of;  // where each lane was last seen; -1 before
    const int32_t* cores = cores_of_cpus();
    int32_t started = 1;  // the caller counts
    pid_t process;        // whose threads these are: a forked child has none of them
    pthread_t* others;
    Lane* lanes;
    void* shared = nullptr;
    Barrier barrier;
    alignas(64) std::atomic<uint32_t> run{0};  // changes when there is work, or the pool closes
    uint32_t run_at_start;
    alignas(64) std::atomic<uint32_t> asleep{0};
    std::atomic<pid_t> caller{0};  // the thread of the last run
    bool closing = false;
    // The run's.
    void (*work)(Pool*, Lane*);
    const Instructions* instructions;
    const Step* steps;
    int64_t count;
    volatile int64_t* progress;
    std::atomic<int64_t> tickets[2];
    int64_t failed = 0;  // lane 0's alone
    // What is packed instead.
    const Matrix* rows;
    const Panels* weight;
    // What is touched while there is no work: the pieces of all parts, first ones first.
    const Part* parts;
    int64_t num_parts;
    std::atomic<int64_t> pieces{0}, touched{0};
};

namespace {

void meet(Lane* lane) {
    Pool* pool = static_cast<Pool*>(lane->pool);
    pool->barrier.meet(pool->threads);
}

// Moves the calling thread to a CPU, which it is then bound to. False where it may not.
bool bind(int32_t cpu) {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(cpu, &only);
    return sched_setaffinity(0, sizeof only, &only) == 0;
}

// Moves a lane away from the others, where there is room. It is not bound to where it comes.
int32_t move_apart(Pool* pool, int32_t index, int32_t cpu) {
    cpu_set_t allowed, taken;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return cpu;
    CPU_ZERO(&taken);
    for (int32_t i = 0; i < pool->threads; i++) {
        int32_t other = pool->cpu_of[i].load(std::memory_order_relaxed);
        if (i != index && other >= 0) CPU_SET(other, &taken);
    }
    int32_t to = shoal_apart(pool->cores, &allowed, &taken, cpu);
    if (to == cpu || !bind(to)) return cpu;
    sched_setaffinity(0, sizeof allowed, &allowed);
    return to;
}

// Written only where it changes: before every step all lanes read it.
void see(Pool* pool, int32_t index, int32_t cpu) {
    std::atomic<int32_t>& seen = pool->cpu_of[index];
    if (seen.load(std::memory_order_relaxed) != cpu) seen.store(cpu, std::memory_order_relaxed);
}

// Two lanes on one CPU take turns at every barrier, and a scheduler that has put them there on a
// busy machine leaves them, for seconds: looked at before every step, the later one moves.
void keep_apart(Pool* pool, int32_t index) {
    int32_t cpu = sched_getcpu();
    bool shared = false;
    for (int32_t i = 0; i < index; i++) {
        shared |= pool->cpu_of[i].load(std::memory_order_relaxed) == cpu;
    }
    see(pool, index, shared ? move_apart(pool, index, cpu) : cpu);
}

// Sleeps until there is work, bound to its CPU: a thread that is woken would else be put beside the
// one that wakes it. Then it may use what the caller may, who is never bound: somebody may have given
// the process other CPUs meanwhile.
void sleep(Pool* pool, uint32_t seen) {
    cpu_set_t allowed;
    bool bound = !sched_getaffinity(0, sizeof allowed, &allowed) && bind(sched_getcpu());
    sleep_on(&pool->run, seen, &pool->asleep, OF_PROCESS, 0);
    if (!bound) return;
    sched_getaffinity(pool->caller.load(), sizeof allowed, &allowed);  // as before where it is gone
    sched_setaffinity(0, sizeof allowed, &allowed);
}

// Once the last barrier is passed the caller may begin the next run: what a lane needs of this one
// it reads before.
void run_lane(Pool* pool, Lane* lane) {
    const Instructions* instructions = pool->instructions;
    const Step* steps = pool->steps;
    const int64_t count = pool->count;
    volatile int64_t* progress = lane->index == 0 ? pool->progress : nullptr;
    // All lanes round alike, whatever their threads were set to, and no denormal number slows one.
    const uint32_t modes = _mm_getcsr();
    _mm_setcsr(ROUND_TO_NEAREST_FLUSH_DENORMALS);
    instructions->begin();
    for (int64_t i = 0; i < count; i++) {
        // Two counters take turns: the one of the next step is cleared while nobody uses it.
        lane->tickets = &pool->tickets[i & 1];
        if (lane->index == 0) pool->tickets[(i + 1) & 1].store(0, std::memory_order_relaxed);
        if (progress) *progress = steps[i].mark;
        keep_apart(pool, lane->index);
        Op op = instructions->ops[steps[i].kind];
        int32_t failed = op ? op(steps[i].args, lane) : 1;
        if (failed && lane->index == 0) pool->failed = i + 1;
        pool->barrier.meet(pool->threads);
        if (failed) break;
    }
    instructions->end();
    _mm_setcsr(modes);
}

void pack_lane(Pool* pool, Lane* lane) {
    int64_t panels = panels_of(*pool->weight);
    pool->instructions->pack(*pool->rows, *pool->weight, lane->first(panels), lane->last(panels));
    pool->barrier.meet(pool->threads);
}

// Takes the pages of one more piece of the parts, whose content stays as it is. False where none is
// left.
bool touch_piece(Pool* pool) {
    int64_t pieces = pool->pieces.load(), i = pool->touched.load();
    if (i >= pieces || (i = pool->touched.fetch_add(1)) >= pieces) return false;
    const Part& part = pool->parts[i % pool->num_parts];
    int64_t from = i / pool->num_parts * LARGE_PAGE;
    for (int64_t at = from; at < part.bytes && at < from + LARGE_PAGE; at += PAGE) {
        // In assembly: a compiler may leave out an operation whose result nobody reads.
        asm volatile("lock orb $0, %0" : "+m"(*(static_cast<char*>(part.data) + at)));
    }
    return true;
}

void* live(void* given) {
    Lane* lane = static_cast<Lane*>(given);
    Pool* pool = static_cast<Pool*>(lane->pool);
    uint32_t seen = pool->run_at_start;
    for (;;) {
        auto called = [&] { return pool->run.load(std::memory_order_acquire) != seen; };
        while (!soon(called, AWAKE_NS)) {
            while (!called() && touch_piece(pool)) {}
            if (!called()) sleep(pool, seen);
        }
        seen++;
        if (pool->closing) return nullptr;
        keep_apart(pool, lane->index);
        pool->work(pool, lane);
    }
}

void begin_run(Pool* pool) {
    pool->run.fetch_add(1);
    wake(&pool->run, &pool->asleep, OF_PROCESS);
}

// Signals are for the threads that the process had before. False where a thread was refused.
bool start(Pool* pool) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    pool->process = getpid();
    pool->run_at_start = pool->run.load();
    for (int32_t i = 0; i < pool->threads; i++) pool->cpu_of[i].store(-1);
    for (pool->started = 1; pool->started < pool->threads; pool->started++) {
        int32_t i = pool->started;
        if (pthread_create(&pool->others[i], nullptr, live, &pool->lanes[i])) break;
        pthread_setname_np(pool->others[i], "shoal-cpu");
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return pool->started == pool->threads;
}

void stop(Pool* pool) {
    if (pool->process != getpid()) return;
    pool->closing = true;
    begin_run(pool);
    for (int32_t i = 1; i < pool->started; i++) pthread_join(pool->others[i], nullptr);
}

// All threads do `work`, the caller among them. False where a forked child got no threads.
bool run_all(Pool* pool, void (*work)(Pool*, Lane*)) {
    if (pool->process != getpid()) {
        pool->barrier.came.store(0);
        pool->asleep.store(0);
        if (!start(pool)) {
            stop(pool);  // those that there are
            pool->closing = false;
            pool->process = -1;  // the next run tries anew
            return false;
        }
    }
    pool->work = work;
    pool->instructions = chosen_instructions();
    pool->caller.store(static_cast<pid_t>(syscall(SYS_gettid)));
    see(pool, 0, sched_getcpu());
    begin_run(pool);
    work(pool, &pool->lanes[0]);
    return true;
}

}  // namespace

SHOAL_API Pool* shoal_pool_open(int32_t threads) {
    Pool* pool = threads > 0 ? new (std::nothrow) Pool() : nullptr;
    if (!pool) return nullptr;
    pool->threads = threads;
    pool->process = getpid();
    pool->others = new pthread_t[threads];
    pool->cpu_of = new std::atomic<int32_t>[threads];
    pool->lanes = new Lane[threads]();
    bool got = !posix_memalign(&pool->shared, 4096, SHARED_BYTES);
    for (int32_t i = 0; got && i < threads; i++) {
        void* scratch = nullptr;
        got = !posix_memalign(&scratch, 4096, SCRATCH_BYTES);
        pool->lanes[i] = Lane{i, threads, nullptr, nullptr, scratch, pool->shared, meet, pool};
    }
    if (got && start(pool)) return pool;
    shoal_pool_close(pool);
    return nullptr;
}

SHOAL_API void shoal_pool_close(Pool* pool) {
    stop(pool);
    for (int32_t i = 0; i < pool->threads; i++) free(pool->lanes[i].scratch);
    free(pool->shared);
    delete[] pool->others;
    delete[] pool->cpu_of;
    delete[] pool->lanes;
    delete pool;
}

SHOAL_API void shoal_pool_touch(Pool* pool, const Part* parts, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) most = std::max(most, parts[i].bytes);
    pool->parts = parts;
    pool->num_parts = count;
    pool->pieces.store(count * ((most + LARGE_PAGE - 1) / LARGE_PAGE));
}

SHOAL_API int64_t shoal_run(Pool* pool, const Step* steps, int64_t count, const Sizes* sizes,
                            volatile int64_t* progress) {
    if (count == 0) return 0;  // no barrier would keep the other lanes in step
    pool->steps = steps;
    pool->count = count;
    pool->progress = progress;
    pool->failed = 0;
    pool->tickets[0].store(0);
    for (int32_t i = 0; i < pool->threads; i++) pool->lanes[i].sizes = sizes;
    return run_all(pool, run_lane) ? pool->failed : 1;
}

SHOAL_API int32_t shoal_pack(Pool* pool, const Matrix* rows, const Panels* weight) {
    pool->rows = rows;
    pool->weight = weight;
    return run_all(pool, pack_lane) ? 0 : 1;
}

SHOAL_API int64_t shoal_packed_bytes(const Panels* weight) {
    return panels_of(*weight) * panel_elements(*weight) * (weight->format == F32_PANELS ? 4 : 2);
}
