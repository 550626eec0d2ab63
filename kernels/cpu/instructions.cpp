// The choice of an instruction set, by what the processor and the kernel allow.
#include "instructions.h"

#include <cpuid.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Linux hands AMX's registers out on request, once a process.
bool may_use_tiles() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

// What leaf 7 says of features that older compilers' __builtin_cpu_supports does not know.
struct Features {
    uint32_t a = 0, b = 0, c = 0, d = 0;

    explicit Features(uint32_t part) { __get_cpuid_count(7, part, &a, &b, &c, &d); }
};

bool has_bf16() { return has_avx512() && (Features(1).a & 1u << 5); }

bool has_tiles() {
    constexpr uint32_t AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    const Features found(0);
    return (found.d & AMX_BF16) && (found.d & AMX_TILE) && may_use_tiles();
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_amx() {
#ifdef EMULATE_TILES
    return has_bf16();
#else
    return has_bf16() && has_tiles();
#endif
}

// Intel multiplies pairs of bfloat16 at half the rate of float32; AMD at twice.
bool has_fast_bf16() { return !__builtin_cpu_is("intel"); }

bool always() { return true; }

// The best first. A getter is code of its set, which no other processor runs.
const struct {
    const char* name;
    bool (*runs_here)();
    bool (*worth_it)();
    const Instructions* (*get)();  // null where the set is not in the library
} SETS[] = {
    {"amx", has_amx, always, shoal_amx},
    {"avx512bf16", has_bf16, has_fast_bf16, shoal_avx512bf16},
    {"avx512", has_avx512, always, shoal_avx512},
    {"avx2", has_avx2, always, shoal_avx2},
};

// The one of this name, or the best.
const Instructions* find(const char* name) {
    __builtin_cpu_init();
    for (const auto& set : SETS) {
        bool wanted = name ? !strcmp(set.name, name) : set.worth_it();
        if (wanted && set.get && set.runs_here()) return set.get();
    }
    return nullptr;
}

const Instructions* chosen = nullptr;

}  // namespace

const Instructions* chosen_instructions() {
    if (!chosen) chosen = find(nullptr);
    return chosen;
}

SHOAL_API const char* shoal_instructions(void) {
    const Instructions* found = chosen_instructions();
    return found ? found->name : nullptr;
}

// The best set here where it is not in the library, else null.
SHOAL_API const char* shoal_left_out(void) {
    __builtin_cpu_init();
    for (const auto& set : SETS) {
        if (set.worth_it() && set.runs_here()) return set.get ? nullptr : set.name;
    }
    return nullptr;
}

SHOAL_API int32_t shoal_choose(const char* name) {
    const Instructions* found = find(name);
    if (found) chosen = found;
    return found != nullptr;
}

SHOAL_API int32_t shoal_has(int32_t kind) {
    const Instructions* found = chosen_instructions();
    return found && kind >= 0 && kind < NUM_KINDS && found->ops[kind];
}
