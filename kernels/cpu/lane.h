// What an op is given beside its arguments, and the table of ops that each instruction set fills.
#pragma once
#include <atomic>

#include "native.h"

// One thread's view of a run.
struct Lane {
    int32_t index, count;   // this thread, of how many
    const Sizes* sizes;
    std::atomic<int64_t>* tickets;  // a counter of this step, 0 at its start, for tasks that differ in cost
    void* scratch;          // SCRATCH_BYTES of this thread's own, page-aligned
    void* shared;           // SHARED_BYTES of all lanes together, page-aligned
    void (*meet)(Lane*);    // a barrier of all lanes, inside a step
    void* pool;

    int64_t rows(Extent extent) const { return extent == TOKENS ? sizes->tokens : sizes->wanted; }

    // This lane's even share of `total` tasks: [first, last).
    int64_t first(int64_t total) const { return total * index / count; }
    int64_t last(int64_t total) const { return total * (index + 1) / count; }

    // Calls f(task, far) with each of `total` tasks on one lane or another: the first half in even
    // shares, the rest in ever shorter pieces to whoever is free, so that a lane that a neighbour of
    // the machine holds up holds up no other. `far`: the task that the lane likely comes to `ahead`
    // tasks later; `total` or more where there is none. `dealt`: how many of the step's tickets went
    // before, on each lane the same.
    template <class F>
    void deal(int64_t total, int64_t ahead, int64_t* dealt, F f) {
        int64_t fixed = count == 1 ? total : total / 2, end = *dealt + total - fixed;
        *dealt = end;
        auto run = [&](int64_t from, int64_t to) {
            for (int64_t i = from; i < to; i++) {
                int64_t over = i + ahead - to;
                f(i, over < 0 ? i + ahead : total - (end - tickets->load()) + over);
            }
        };
        run(first(fixed), last(fixed));
        int64_t next = tickets->load();
        while (next < end) {
            int64_t some = (end - next) / (2 * count);
            int64_t after = next + (some ? some : 1);
            if (!tickets->compare_exchange_weak(next, after)) continue;
            run(total - (end - next), total - (end - after));
            next = tickets->load();
        }
    }
};

constexpr int64_t SCRATCH_BYTES = 4 << 20;
constexpr int64_t SHARED_BYTES = 16 << 20;

// Returns 0, or another number where the step failed; every lane of a step returns the same.
using Op = int32_t (*)(const void* args, Lane* lane);

struct Instructions {
    const char* name;
    Op ops[NUM_KINDS];  // null where it has none
    // Packs panels first to last of a weight.
    void (*pack)(const Matrix& rows, const Panels& weight, int64_t first, int64_t last);
    void (*begin)();  // on every thread before a run: AMX's tile configuration
    void (*end)();
};

// Absent from a library that was built without them.
#pragma weak shoal_avx2
#pragma weak shoal_avx512
#pragma weak shoal_avx512bf16
#pragma weak shoal_amx
extern "C" const Instructions* shoal_avx2();
extern "C" const Instructions* shoal_avx512();
extern "C" const Instructions* shoal_avx512bf16();
extern "C" const Instructions* shoal_amx();
