// The ops of one instruction set: compiled once for each, with INSTRUCTIONS its name.
#include <math.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "functions.h"
#include "lane.h"
#include "panels.h"
#include "ranks.h"
#include "vector.h"

#if defined(__AMX_BF16__) || defined(EMULATE_TILES)
#define HAS_TILES
#include "tiles.h"
#endif

namespace INSTRUCTIONS {

#include "rows.inc"

#include "argmax.inc"
#include "elementwise.inc"
#include "norm.inc"
#include "rope.inc"

#include "pack.inc"

#include "product.inc"
#ifdef HAS_TILES
#include "product_tiles.inc"
#endif

#include "epilogue.inc"
#include "linear.inc"

#include "cache.inc"
#include "rope_store.inc"
#include "dot.inc"

#include "attend.inc"

#include "reduce.inc"

#include "select.inc"

#include "sampling.inc"

#ifndef HAS_TILES
void nothing() {}
#endif

}  // namespace INSTRUCTIONS

#define GETTER_(name) shoal_##name
#define GETTER(name) GETTER_(name)
#define STRING_(name) #name
#define STRING(name) STRING_(name)

extern "C" const Instructions* GETTER(INSTRUCTIONS)() {
    using namespace INSTRUCTIONS;
    static const Instructions found = [] {
        Instructions made{};
        made.name = STRING(INSTRUCTIONS);
        made.ops[EMBED] = embed;
        made.ops[LINEAR] = linear;
        made.ops[NORM] = norm;
        made.ops[ADD_ROWS] = add_rows;
        made.ops[ANGLES] = angles;
        made.ops[ROPE] = rope;
        made.ops[STORE_KV] = store_kv;
        made.ops[ATTEND] = attend;
        made.ops[ACTIVATE] = activate;
        made.ops[GATHER] = gather;
        made.ops[ARGMAX] = argmax;
        made.ops[REDUCE] = reduce;
        made.ops[ROPE_STORE] = rope_store;
        made.ops[KEYED_UNIFORM] = keyed_uniform;
        made.ops[TEMPER] = temper;
        made.ops[DRAW] = draw;
        made.ops[TOP_TOKENS] = top_tokens;
        made.ops[LOG_SOFTMAX] = log_softmax;
        made.ops[PENALIZE] = penalize;
        made.ops[COUNT_ABOVE] = count_above;
        made.ops[MASK] = mask;
        made.pack = pack;
#ifdef HAS_TILES
        made.begin = tiles_begin;
        made.end = tiles_end;
#else
        made.begin = nothing;
        made.end = nothing;
#endif
        return made;
    }();
    return &found;
}
