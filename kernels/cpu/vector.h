// Sixteen floats at once on every instruction set, so that an order of additions written with them,
// and the bits that come of it, are the same on all. Included inside one translation unit an
// instruction set.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include <utility>

namespace INSTRUCTIONS {

using bf16 = uint16_t;
constexpr int WIDTH = 16;

#ifdef __AVX512F__
using Vec = __m512;
using Mask = __mmask16;

inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec load(const bf16* p) {
    __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
// Rounds to nearest even. NaN stays NaN.
inline void store(bf16* p, Vec x) {
#ifdef __AVX512BF16__
    __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
    __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}
// The even and the odd ones of 32 bfloat16.
inline Vec load_even(const bf16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline Vec load_odd(const bf16* p) {
    __m512i both = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(0xffff0000)));
}
// Sixteen bfloat16 to the even or the odd ones of 32; the others are not written at all.
inline void put_half(const bf16* from, bool odd, bf16* to) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    if (odd) _mm512_mask_storeu_epi16(to, 0xaaaaaaaa, _mm512_slli_epi32(wide, 16));
    else _mm512_mask_storeu_epi16(to, 0x55555555, wide);
}

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
// a * b + c, rounded once.
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
inline Vec round(Vec a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// 2^n of whole n from -126 to 127.
inline Vec power_of_two(Vec n) {
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
// False where either is NaN.
inline Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask is_nan(Vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
inline Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline bool any_above_or_nan(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline uint32_t bits_of(Mask m) { return m; }
// Lanes first to last - 1, both clipped to 0 .. 16.
inline Mask between(int64_t first, int64_t last) {
    uint32_t below = last >= WIDTH ? 0xffff : last <= 0 ? 0 : (1u << last) - 1;
    uint32_t before = first >= WIDTH ? 0xffff : first <= 0 ? 0 : (1u << first) - 1;
    return static_cast<Mask>(below & ~before);
}
// a where the mask holds, b elsewhere.
inline Vec select(Mask m, Vec a, Vec b) { return _mm512_mask_blend_ps(m, b, a); }
inline __m256 low_half(Vec x) { return _mm512_castps512_ps256(x); }
inline __m256 high_half(Vec x) { return _mm512_extractf32x8_ps(x, 1); }
#else
struct Vec {
    __m256 a, b;
};
using Mask = Vec;

inline Vec all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline __m256 widen_eight(const bf16* p) {
    __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline Vec load(const bf16* p) { return {widen_eight(p), widen_eight(p + 8)}; }
inline void narrow_eight(bf16* p, __m256 x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
}
// Rounds to nearest even. NaN stays NaN.
inline void store(bf16* p, Vec x) {
    narrow_eight(p, x.a);
    narrow_eight(p + 8, x.b);
}
// The even and the odd ones of 32 bfloat16.
inline __m256i sixteen_halves(const bf16* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Vec load_even(const bf16* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(sixteen_halves(p), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(sixteen_halves(p + 16), 16))};
}
inline Vec load_odd(const bf16* p) {
    __m256i upper = _mm256_set1_epi32(0xffff0000);
    return {_mm256_castsi256_ps(_mm256_and_si256(sixteen_halves(p), upper)),
            _mm256_castsi256_ps(_mm256_and_si256(sixteen_halves(p + 16), upper))};
}
inline void put_half(const bf16* from, bool odd, bf16* to) {
    for (int i = 0; i < WIDTH; i++) to[2 * i + odd] = from[i];
}

inline Vec add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vec sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vec mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vec div(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
// x * y + z, rounded once.
inline Vec fma(Vec x, Vec y, Vec z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
// y where either is NaN.
inline Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Vec abs(Vec x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Vec round(Vec x) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
// 2^n of whole n from -126 to 127.
inline __m256 power_of_two(__m256 n) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Vec power_of_two(Vec n) { return {power_of_two(n.a), power_of_two(n.b)}; }
// False where either is NaN.
inline Mask less(Vec x, Vec y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
inline Mask is_nan(Vec x) {
    return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
inline Mask equal(Vec x, Vec y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}
inline bool any_above_or_nan(Vec x, Vec y) {
    return _mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_NLE_UQ)) |
           _mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_NLE_UQ));
}
inline uint32_t bits_of(Mask m) { return _mm256_movemask_ps(m.a) | _mm256_movemask_ps(m.b) << 8; }
// Lanes first to last - 1, both clipped to 0 .. 16.
inline __m256 between_eight(float first, float last, __m256 lane) {
    return _mm256_and_ps(_mm256_cmp_ps(lane, _mm256_set1_ps(first), _CMP_GE_OQ),
                         _mm256_cmp_ps(lane, _mm256_set1_ps(last), _CMP_LT_OQ));
}
inline Mask between(int64_t first, int64_t last) {
    float from = first, to = last;
    return {between_eight(from, to, _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)),
            between_eight(from, to, _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15))};
}
// x where the mask holds, y elsewhere.
inline Vec select(Mask m, Vec x, Vec y) {
    return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}
inline __m256 low_half(Vec x) { return x.a; }
inline __m256 high_half(Vec x) { return x.b; }
#endif

// The sum of all lanes, halves folded on each other until one is left.
inline float sum(Vec x) {
    __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// The greatest lane; NaN lanes may or may not be passed over.
inline float greatest(Vec x) {
    __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline float widen(float x) { return x; }
inline float widen(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
inline void narrow(float* p, float x) { *p = x; }
inline void narrow(bf16* p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *p = x != x ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

// The first n lanes from and to memory, n from 1 to 16; zeros in the others.
template <class T>
Vec load_part(const T* p, int64_t n) {
    if (n >= WIDTH) return load(p);
    T part[WIDTH] = {};
    memcpy(part, p, n * sizeof(T));
    return load(part);
}
template <class T>
void store_part(T* p, Vec x, int64_t n) {
    if (n >= WIDTH) return store(p, x);
    T part[WIDTH];
    store(part, x);
    memcpy(p, part, n * sizeof(T));
}

#define INLINE __attribute__((always_inline))

// Brings a line of 64 bytes near. In assembly: GCC holds a function that does nothing but
// __builtin_prefetch for one without effect, and leaves its calls out.
inline void fetch_line(const void* line) {
    asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(line)));
}

// Calls f(row, column) for R rows of C columns, written out: sums that are to stay in registers must
// not be reached by a number that only a loop knows.
template <int C, class F, int... I>
INLINE inline void each_of(std::integer_sequence<int, I...>, F f) {
    (f(I / C, I % C), ...);
}
template <int R, int C, class F>
INLINE inline void each(F f) {
    each_of<C>(std::make_integer_sequence<int, R * C>(), f);
}

}  // namespace INSTRUCTIONS
