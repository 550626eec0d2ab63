// The choice of an instruction set, by what the processor and the kernel allow.
#include "instructions.h"

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <initializer_list>

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

bool has_tiles() {
    uint32_t a = 7, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    constexpr uint32_t AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
    return (d & AMX_BF16) && (d & AMX_TILE) && may_use_tiles();
}

bool runs_here(const char* name) {
    __builtin_cpu_init();
    if (!strcmp(name, "avx2")) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    if (!strcmp(name, "avx512")) return has_avx512();
    bool has_bf16 = has_avx512() && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(name, "avx512bf16")) return has_bf16;
#ifdef EMULATE_TILES
    if (!strcmp(name, "amx")) return has_bf16;
#endif
    if (!strcmp(name, "amx")) return has_bf16 && has_tiles();
    return false;
}

// Intel multiplies pairs of bfloat16 at half the rate of float32; AMD at twice.
bool worth_it(const char* name) {
    return strcmp(name, "avx512bf16") || !__builtin_cpu_is("intel");
}

// The one of this name, or the best.
const Instructions* find(const char* name) {
    for (auto* get : {shoal_amx, shoal_avx512bf16, shoal_avx512, shoal_avx2}) {
        const Instructions* found = get ? get() : nullptr;
        if (!found || !runs_here(found->name)) continue;
        if (name ? !strcmp(found->name, name) : worth_it(found->name)) return found;
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

SHOAL_API int32_t shoal_choose(const char* name) {
    const Instructions* found = find(name);
    if (found) chosen = found;
    return found != nullptr;
}

SHOAL_API int32_t shoal_has(int32_t kind) {
    const Instructions* found = chosen_instructions();
    return found && kind >= 0 && kind < NUM_KINDS && found->ops[kind];
}
