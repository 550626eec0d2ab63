// What this processor can do at most: reading memory, and multiplying in registers.
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

volatile float sink;

__attribute__((target("avx512f"))) void read_lines(const char* at, int64_t bytes) {
    __m512i a = _mm512_setzero_si512(), b = a;
    for (int64_t i = 0; i < bytes; i += 128) {
        _mm_prefetch(at + i + 4096, _MM_HINT_T1);
        _mm_prefetch(at + i + 4160, _MM_HINT_T1);
        a = _mm512_xor_si512(a, _mm512_loadu_si512(at + i));
        b = _mm512_xor_si512(b, _mm512_loadu_si512(at + i + 64));
    }
    sink = _mm512_reduce_add_epi32(_mm512_xor_si512(a, b));
}

constexpr int CHAINS = 14;

__attribute__((target("avx512f"))) void fma_f32(int64_t count) {
    __m512 sum[CHAINS], x = _mm512_set1_ps(sink * 0 + 1e-9f);
    for (auto& each : sum) each = x;
    for (int64_t i = 0; i < count; i += CHAINS) {
#pragma GCC unroll 14
        for (auto& each : sum) each = _mm512_fmadd_ps(each, x, x);
    }
    for (auto& each : sum) sink = _mm512_reduce_add_ps(each);
}

__attribute__((target("avx512f,avx512bf16"))) void dot_bf16(int64_t count) {
    __m512 sum[CHAINS];
    __m512i bits = _mm512_set1_epi32(static_cast<int32_t>(sink * 0));
    __m512bh x = (__m512bh)bits;
    for (auto& each : sum) each = _mm512_castsi512_ps(bits);
    for (int64_t i = 0; i < count; i += CHAINS) {
#pragma GCC unroll 14
        for (auto& each : sum) each = _mm512_dpbf16_ps(each, x, x);
        asm volatile("" : "+v"(x));
    }
    for (auto& each : sum) sink = _mm512_reduce_add_ps(each);
}

struct Share {
    int kind;
    const char* data;
    int64_t amount;
    std::atomic<int>* ready;
    int of;
    double begun, ended;
};

void* work(void* given) {
    Share& share = *static_cast<Share*>(given);
    share.ready->fetch_add(1);
    while (share.ready->load() < share.of) _mm_pause();
    share.begun = now();
    if (share.kind == 0) read_lines(share.data, share.amount);
    if (share.kind == 1) fma_f32(share.amount);
    if (share.kind == 2) dot_bf16(share.amount);
    share.ended = now();
    return nullptr;
}

}  // namespace

// Seconds from the first thread's start to the last one's end. Kind 0 reads `amount` bytes of `data`
// a thread, side by side; 1 and 2 do so many multiplications of 16 float32 or 32 bfloat16.
EXPORT double roof(int kind, int threads, const char* data, int64_t amount) {
    std::atomic<int> ready{0};
    std::vector<pthread_t> others(threads);
    std::vector<Share> shares(threads);
    for (int i = 0; i < threads; i++) {
        shares[i] = Share{kind, data ? data + i * amount : nullptr, amount, &ready, threads, 0, 0};
        pthread_create(&others[i], nullptr, work, &shares[i]);
    }
    for (int i = 0; i < threads; i++) pthread_join(others[i], nullptr);
    double begun = shares[0].begun, ended = 0;
    for (auto& each : shares) {
        begun = std::min(begun, each.begun);
        ended = std::max(ended, each.ended);
    }
    return ended - begun;
}
