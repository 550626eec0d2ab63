// Functions of a vector: within a few units in the last place of float32, NaN stays NaN.
#pragma once
#include <initializer_list>

#include "vector.h"

namespace INSTRUCTIONS {

// e^x, x held to [-87.3, 88.3], so that the result is a normal number. By powers of two and a
// polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf).
inline Vec exp(Vec x) {
    x = max(all(-87.3f), min(all(88.3f), x));
    Vec n = round(mul(x, all(1.44269504f)));
    Vec f = fma(n, all(-0.693359375f), x);
    f = fma(n, all(2.12194440e-4f), f);
    Vec p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
        p = fma(p, f, all(c));
    }
    p = fma(mul(f, f), p, add(f, all(1)));
    return scale(p, n);
}

inline Vec sigmoid(Vec x) { return div(all(1), add(all(1), exp(sub(all(0), x)))); }

inline Vec silu(Vec x) { return mul(x, sigmoid(x)); }

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
inline Vec gelu_tanh(Vec x) {
    Vec cube = mul(mul(x, x), x);
    return mul(x, sigmoid(mul(all(1.5957691216f), fma(cube, all(0.044715f), x))));
}

// x Phi(x), the complement of erf by Abramowitz and Stegun 7.1.26 (1.5e-7).
inline Vec gelu_erf(Vec x) {
    Vec size = max(mul(all(-0.70710678f), x), mul(all(0.70710678f), x));
    Vec t = div(all(1), fma(size, all(0.3275911f), all(1)));
    Vec p = all(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, all(c));
    Vec rest = mul(mul(p, t), exp(sub(all(0), mul(size, size))));  // 1 - erf(|x| / sqrt 2)
    // x Phi(x) = max(x, 0) - |x| rest / 2
    return sub(max(all(0), x), mul(mul(size, all(0.70710678f)), rest));
}

inline Vec relu(Vec x) { return max(all(0), x); }

}  // namespace INSTRUCTIONS
