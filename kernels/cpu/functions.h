// Functions of sixteen floats, correct to a few units in the last place of float32.
#pragma once
#include "vector.h"

namespace INSTRUCTIONS {

template <int N>
Vec polynomial(Vec x, const float (&rising)[N]) {
    Vec y = all(rising[N - 1]);
    for (int i = N - 2; i >= 0; i--) y = fma(y, x, all(rising[i]));
    return y;
}

// e^x: exactly 1 at 0, 0 below -87.3, the value at 88 above it. NaN stays NaN.
inline Vec exp(Vec x) {
    constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    constexpr float LEAST = -87.3f;
    Vec bounded = max(all(LEAST), min(all(88.0f), x));
    Vec n = round(mul(bounded, all(LOG2_E)));
    Vec r = fma(n, all(-LN2_HIGH), bounded);
    r = fma(n, all(-LN2_LOW), r);
    Vec q = polynomial(r, {0.5f, 0.16666576f, 0.041666374f, 0.0083631799f, 0.0013941118f});
    Vec y = mul(fma(mul(r, r), q, add(r, all(1.0f))), power_of_two(n));
    return select(less(x, all(LEAST)), all(0.0f), y);
}

// With the sign of the second.
inline Vec signed_as(Vec magnitude, Vec sign) {
    return select(less(sign, all(0.0f)), sub(all(0.0f), magnitude), magnitude);
}

inline Vec tanh(Vec x) {
    Vec size = abs(x), square = mul(x, x);
    Vec small = polynomial(square, {-0.33333329f, 0.13332746f, -0.053846700f, 0.020975020f,
                                    -0.0060622400f});
    small = fma(mul(x, square), small, x);
    Vec e = exp(mul(size, all(-2.0f)));
    Vec large = div(sub(all(1.0f), e), add(all(1.0f), e));
    return select(less(size, all(0.625f)), small, signed_as(large, x));
}

inline Vec erf(Vec x) {
    Vec size = min(all(4.0f), abs(x));
    Vec small = polynomial(mul(x, x), {1.12837917f, -0.376126271f, 0.112836002f, -0.0268544446f,
                                       5.18953534e-3f, -8.02084128e-4f, 7.88911954e-5f});
    // 1 - erf falls as e^-q, q nearly a parabola.
    Vec q = polynomial(size, {-1.88040225e-4f, 1.12957842f, 0.633219893f, 0.108418577f,
                              -0.0252082567f, 4.20456187e-3f, -4.41336376e-4f, 2.16868499e-5f});
    Vec large = sub(all(1.0f), exp(sub(all(0.0f), q)));
    return select(less(size, all(1.0f)), mul(x, small), signed_as(large, x));
}

inline Vec silu(Vec x) {
    Vec e = exp(sub(all(0.0f), abs(x)));
    Vec share = select(less(x, all(0.0f)), e, all(1.0f));
    return mul(x, div(share, add(all(1.0f), e)));
}

inline Vec gelu_erf(Vec x) {
    Vec half = mul(x, all(0.5f));
    return fma(half, erf(mul(x, all(0.707106781f))), half);
}

inline Vec gelu_tanh(Vec x) {
    Vec inner = mul(fma(mul(mul(x, x), x), all(0.044715f), x), all(0.797884561f));
    Vec half = mul(x, all(0.5f));
    return fma(half, tanh(inner), half);
}

// 0 for what is below it. NaN stays NaN.
inline Vec relu(Vec x) { return max(all(0.0f), x); }

}  // namespace INSTRUCTIONS
