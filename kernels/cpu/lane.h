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
