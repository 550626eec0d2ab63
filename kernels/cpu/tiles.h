// AMX's eight tiles of 16 rows of 64 bytes; with EMULATE_TILES the same in plain C, for tests on
// machines without them. Tile numbers are literals.
#pragma once
#include <string.h>

#include "vector.h"

#ifdef EMULATE_TILES

namespace INSTRUCTIONS {

struct Tile {
    char rows[16][64];
};
inline thread_local Tile tiles[8];

inline void tiles_begin() {}
inline void tiles_end() {}
inline void tile_zero(int t) { tiles[t] = {}; }
inline void tile_load(int t, const void* from, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy(tiles[t].rows[r], static_cast<const char*>(from) + r * stride, 64);
}
inline void tile_load_once(int t, const void* from, int64_t stride) { tile_load(t, from, stride); }
inline void tile_store(int t, void* into, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy(static_cast<char*>(into) + r * stride, tiles[t].rows[r], 64);
}
// c[m][n] += a[m][2k] b[k][2n] + a[m][2k + 1] b[k][2n + 1]
inline void tile_multiply(int c, int a, int b) {
    for (int m = 0; m < 16; m++) {
        float sum[16];
        bf16 left[32], right[32];
        memcpy(sum, tiles[c].rows[m], 64);
        memcpy(left, tiles[a].rows[m], 64);
        for (int k = 0; k < 16; k++) {
            memcpy(right, tiles[b].rows[k], 64);
            for (int n = 0; n < 16; n++) {
                sum[n] += widen(left[2 * k]) * widen(right[2 * n]);
                sum[n] += widen(left[2 * k + 1]) * widen(right[2 * n + 1]);
            }
        }
        memcpy(tiles[c].rows[m], sum, 64);
    }
}

}  // namespace INSTRUCTIONS

#else

#define tile_zero(t) _tile_zero(t)
#define tile_load(t, from, stride) _tile_loadd(t, from, stride)
// Of what is not soon read again.
#define tile_load_once(t, from, stride) _tile_stream_loadd(t, from, stride)
#define tile_store(t, into, stride) _tile_stored(t, into, stride)
#define tile_multiply(c, a, b) _tile_dpbf16ps(c, a, b)

namespace INSTRUCTIONS {

struct TileConfig {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// Static, and behind a barrier: compilers know only the first bytes as read by the instruction.
inline void tiles_begin() {
    alignas(64) static const TileConfig config = {
        1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}
inline void tiles_end() { _tile_release(); }

}  // namespace INSTRUCTIONS

#endif
