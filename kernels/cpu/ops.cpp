// The ops of one instruction set: compiled once for each, with INSTRUCTIONS its name.
#include <math.h>

#include <type_traits>

#include "functions.h"
#include "lane.h"
#include "vector.h"

namespace INSTRUCTIONS {

#include "rows.inc"

#include "argmax.inc"
#include "elementwise.inc"
#include "norm.inc"
#include "rope.inc"

#include "cache.inc"
#include "dot.inc"

#include "attend.inc"

int32_t missing(const void*, Lane*) { return 1; }

void nothing() {}

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
        for (Op& op : made.ops) op = missing;
        made.ops[NORM] = norm;
        made.ops[ADD_ROWS] = add_rows;
        made.ops[ANGLES] = angles;
        made.ops[ROPE] = rope;
        made.ops[STORE_KV] = store_kv;
        made.ops[ATTEND] = attend;
        made.ops[ACTIVATE] = activate;
        made.ops[GATHER] = gather;
        made.ops[ARGMAX] = argmax;
        made.begin = nothing;
        made.end = nothing;
        return made;
    }();
    return &found;
}
