// The geometry of packed weights.
#pragma once
#include "native.h"

constexpr int64_t PANEL = 32;  // outputs of a panel
constexpr int64_t CHUNK = 32;  // inputs that lie together in it
constexpr int64_t TILE = 16;   // outputs of half a panel

inline int64_t chunks_of(const Panels& weight) { return (weight.inputs + CHUNK - 1) / CHUNK; }

// Outputs of one half of a paired weight.
inline int64_t half_of(const Panels& weight) { return weight.outputs / 2; }

inline int64_t panels_of(const Panels& weight) {
    if (weight.paired) return (half_of(weight) + TILE - 1) / TILE;
    return (weight.outputs + PANEL - 1) / PANEL;
}

inline int64_t panel_elements(const Panels& weight) { return chunks_of(weight) * CHUNK * PANEL; }

// Which output stands at place n of a panel; -1 where padding does.
inline int64_t output_at(const Panels& weight, int64_t panel, int64_t n) {
    if (!weight.paired) {
        int64_t output = panel * PANEL + n;
        return output < weight.outputs ? output : -1;
    }
    int64_t output = panel * TILE + n % TILE, half = half_of(weight);
    return output < half ? n / TILE * half + output : -1;
}

// Where inputs k of the outputs n of a BF16 panel lie: k in steps of 2 is a step of 32 elements.
inline int64_t bf16_place(int64_t n, int64_t k) {
    int64_t tile = (k / CHUNK * 2 + n / TILE) * TILE * CHUNK;
    return tile + k % CHUNK / 2 * 2 * TILE + n % TILE * 2 + k % 2;
}
