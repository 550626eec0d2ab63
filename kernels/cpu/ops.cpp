// The ops of one instruction set: compiled once for each, with INSTRUCTIONS its name.
#include "lane.h"
#include "functions.h"
#include "vector.h"

namespace INSTRUCTIONS {

#include "elementwise.inc"

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
        made.ops[ADD_ROWS] = add_rows;
        made.begin = nothing;
        made.end = nothing;
        return made;
    }();
    return &found;
}
