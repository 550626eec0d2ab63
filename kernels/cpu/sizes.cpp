// What Python checks its mirrors of the structs against.
#include "native.h"

SHOAL_API const char* shoal_sources(void) { return SOURCES; }

SHOAL_API int64_t shoal_size_of(int32_t kind) {
    switch (kind) {
        case -4: return sizeof(Part);
        case -3: return sizeof(Panels);
        case -2: return sizeof(Sizes);
        case -1: return sizeof(Step);
        case EMBED: return sizeof(Embed);
        case LINEAR: return sizeof(Linear);
        case NORM: return sizeof(Norm);
        case ADD_ROWS: return sizeof(Add);
        case ANGLES: return sizeof(Angles);
        case ROPE: return sizeof(Rope);
        case STORE_KV: return sizeof(StoreKv);
        case ATTEND: return sizeof(Attend);
        case ACTIVATE: return sizeof(Activate);
        case GATHER: return sizeof(Gather);
        case ARGMAX: return sizeof(Argmax);
        case REDUCE: return sizeof(Reduce);
        case ROPE_STORE: return sizeof(RopeStore);
        case KEYED_UNIFORM: return sizeof(KeyedUniform);
        case TEMPER: return sizeof(Temper);
        case DRAW: return sizeof(Draw);
        case TOP_TOKENS: return sizeof(TopTokens);
        case LOG_SOFTMAX: return sizeof(LogSoftmax);
        case PENALIZE: return sizeof(Penalize);
        case COUNT_ABOVE: return sizeof(CountAbove);
        case MASK: return sizeof(Masking);
        default: return 0;
    }
}
