// The C interface of the CPU ops: what Python writes and the kernels read.
//
// A step is a list of `Step`s, one an op. All addresses are fixed when the list is made; what
// changes from run to run are the contents of buffers and the three counts in `Sizes`. structures.py
// mirrors these structs field by field; `shoal_size_of` lets a test compare the two.
//
// Every op is run by all threads of a pool at once, each with its own `Lane`; a barrier stands
// between two steps. For one output row the order of additions depends on that row alone, never on
// the counts, so that a row's bits do not depend on its company.
#pragma once
#include <stdint.h>

#define SHOAL_API extern "C" __attribute__((visibility("default")))

enum Dtype : int32_t { F32 = 0, BF16 = 1 };

// Which of the batch's counts is an op's number of rows.
enum Extent : int32_t { TOKENS = 0, WANTED = 1 };

struct Sizes {
    int64_t tokens;     // T, packed sequence after sequence
    int64_t wanted;     // S, rows whose logits are wanted
    int64_t sequences;  // B
};

// Row-major: element (r, c) is data[r * stride + c], stride in elements.
struct Matrix {
    void* data;
    int64_t stride;
    Dtype dtype;
};

// A weight [outputs, inputs], packed once: panels of 32 outputs, each contiguous, both sizes padded
// with zeros to multiples of 32.
//
//   F32_PANELS    [outputs / 32][inputs][32]
//   BF16_PANELS   [outputs / 32][inputs / 32][2][16][16][2]: for each 32 inputs two tiles of 16
//                 outputs, in it 16 pairs of inputs, 16 outputs, the pair: AMX's order, in which
//                 vdpbf16ps can read a pair of inputs for 16 outputs as one vector too
//
// `paired`: the first half of the outputs (a gate's) and the second (up) alternate by 16, so that a
// panel holds 16 of each. Room is left for INT8 and INT4 panels with `scales`.
enum Format : int32_t { F32_PANELS = 0, BF16_PANELS = 1 };

struct Panels {
    void* data;
    const float* scales;
    int64_t inputs;   // as in the checkpoint, not padded
    int64_t outputs;  // likewise; of a paired one both halves together
    Format format;
    int32_t paired;
};

// out[r] = row tokens[r] - start of the table, or zeros where that is outside of it.
struct Embed {
    Matrix out;
    const int64_t* tokens;
    Panels panels;      // where data is null, `table` is read instead
    Matrix table;
    int64_t start, rows, columns;
};

// What becomes of a product y = x W^T + bias, float32 until then.
enum Epilogue : int32_t {
    STORE = 0,
    ADD = 1,       // out += y, in out's dtype
    SILU_MUL = 2,  // paired panels: out = silu(gate) * up, half as wide
    GELU_ERF = 3,
    GELU_TANH = 4,
    RELU = 5,
    ARGMAX_ROW = 6,  // out.data int64 [rows]: the place of each row's greatest output, the lowest
                     // of equals, a NaN above all; `top` is that output; y is not kept
};

// On AMX and AVX-512 bf16, x is rounded to bfloat16 for BF16_PANELS.
struct Linear {
    Matrix x, out;
    Panels weight;
    const float* bias;  // [outputs], of a paired weight in the same order as its outputs; or null
    Extent extent;
    Epilogue epilogue;
    float* top;         // [rows] of ARGMAX_ROW; or null
};

// y = norm(x) * weight + bias, over `columns`, for `groups` runs of columns in each row:
// x of group g begins at column g * x_step, out's at g * out_step.
// `add` (data not null): x += add first, in x's dtype.
enum NormKind : int32_t { RMS = 0, LAYER = 1 };

struct Norm {
    Matrix x, add, out;
    const float* weight;
    const float* bias;  // of LAYER
    int64_t columns, groups, x_step, out_step;
    float eps;
    NormKind kind;
    Extent extent;
};

// into += x, [rows, columns].
struct Add {
    Matrix x, into;
    int64_t columns;
    Extent extent;
};

// cos, sin [T, columns] float32 of positions[t] * inv_freq[i], times scale.
struct Angles {
    const int64_t* positions;
    const float* inv_freq;
    float* cos;
    float* sin;
    int64_t columns;
    float scale;
};

// Heads turn in place: head h of a row begins at column h * step. The first `angles` columns turn
// with the next `angles`.
struct Rope {
    Matrix x;
    const float* cos;
    const float* sin;
    int64_t heads, step, angles;
};

// A cache [2, blocks, block_size, heads, head_size] whose content only StoreKv and Attend read.
// The page of block n and head g: the keys at plane 0, the values at plane 1, each
// block_size * head_size elements at ((plane * blocks + n) * heads + g) * block_size * head_size.
//
//   BF16 keys     [block_size / 16][head_size / 2][16 tokens][2]
//   BF16 values   [block_size / c][head_size / 16][c / 2][16][2 tokens], c = min(32, block_size)
//   F32 keys      [block_size / 16][head_size][16 tokens]
//   F32 values    [block_size][head_size]
//
// block_size a multiple of 16, or of 32 beyond 16; head_size a multiple of 16, up to 256: a head that
// is no such multiple has zeros behind it.
struct Cache {
    void* data;
    int64_t blocks, block_size, heads, head_size;
    Dtype dtype;
};

// Keys and values of each token, heads side by side, go to slots[t] = block * block_size + offset.
struct StoreKv {
    Matrix k, v;
    const int64_t* slots;
    Cache cache;
    int64_t head_size;  // of k and v, at most the cache's
};

// Norm, Rope and StoreKv in turn, head by head: a token's query and key heads are normed where
// there is a norm (x.data not null) of them, one group a head, and turned; then its keys, as they
// are in k.x then, and its values go to the cache. The same bits as the steps one by one.
struct RopeStore {
    Norm q_norm, k_norm;
    Rope q, k;
    StoreKv store;
};

// As ops.paged_attention. The table's row b begins at block_table + b * table_stride.
struct Attend {
    Matrix q, out;      // [T, heads * head_size]; head_size at most the cache's
    Cache cache;
    const int32_t* block_table;
    int64_t table_stride;
    const int32_t* query_start;
    const int32_t* kv_len;
    const float* alibi;  // [heads, alibi_stride], or null
    int64_t alibi_stride;
    int64_t heads, head_size;
    int64_t window;      // 0 for none
    float scale;
    float softcap;       // 0 for none
};

// out = f(x), [rows, columns]; for SILU_MUL x has twice as many, the gate's first.
struct Activate {
    Matrix x, out;
    int64_t columns;
    Epilogue kind;
    Extent extent;
};

// out[s] = x[rows[s]], for the wanted rows.
struct Gather {
    Matrix x, out;
    const int64_t* rows;
    int64_t columns;
};

// tokens[s] = the first greatest of logits[s], [S, columns] float32.
struct Argmax {
    Matrix logits;
    int64_t* tokens;
    int64_t columns;
};

// The sum over the ranks of a node, in their order, in float32; x is replaced by it. All of them run
// it with as many rows, and x of one dtype. `slab`: memory that all map, zero at first; see
// reduce.inc.
struct Reduce {
    Matrix x;
    void* slab;
    const int32_t* pipes;  // [ranks], a file of each other rank that is hung up when it is gone
    int64_t slab_bytes;
    int64_t columns;
    int32_t rank, ranks;
    Extent extent;
};

// ---- sampling: kernels/sampling.py says what is drawn. Its rows are the wanted ones, their values
// float32; `columns` is the vocabulary.

struct KeyedUniform {
    const int64_t* keys;
    const int64_t* positions;
    const int64_t* siblings;
    double* out;
    int64_t draw;
};

// out[s] = (logits[rows[s]] - top[s]) / temperature[s]
struct Temper {
    Matrix logits, out;
    const int64_t* rows;
    const float* top;
    const float* temperature;
    int64_t columns;
};

// tokens[s] by probability e^x: among those that min_p, top_k and top_p leave where top_k is given,
// those of top_p where that is, else all.
struct Draw {
    Matrix x;
    const double* u;
    int64_t* tokens;
    const int64_t* top_k;
    const float* min_p;
    const float* top_p;
    int64_t columns;
};

// The `most` greatest of each row: ids, kept [S, most]; id 0 of -inf where there are no more.
struct TopTokens {
    Matrix values;
    int64_t* ids;
    float* kept;
    int64_t columns, most;
};

// counts[s, j] = how many values of row s are greater than bounds[s, j]; both [S, num].
struct CountAbove {
    Matrix values;
    const float* bounds;
    int64_t* counts;
    int64_t columns, num;
};

// out = x - log(sum of e^x); out may be x.
struct LogSoftmax {
    Matrix x, out;
    int64_t columns;
};

// In place, of row rows[s] of the logits for each s, all different.
struct Penalize {
    Matrix logits;
    const int64_t* rows;
    const int32_t* ids;
    const int64_t* num_prompt;
    const int64_t* num_tokens;
    const float* repetition;
    const float* frequency;
    const float* presence;
    int64_t ids_stride, columns;
};

// Of row rows[r] of the logits, all different: what is not allowed becomes -inf, then amounts are
// added to the logits of ids, edits starts[r] to starts[r + 1]. Bit i of word w of `allowed`
// [masks, words] is of token 32 w + i; which[r] is a row's mask, -1 for none. broken[r]: a NaN was
// there.
struct Masking {
    Matrix logits;
    const int64_t* rows;
    const uint32_t* allowed;
    const int64_t* which;
    const int64_t* starts;
    const int32_t* ids;
    const float* amounts;
    bool* broken;
    int64_t words, columns;
};

enum Kind : int32_t {
    EMBED, LINEAR, NORM, ADD_ROWS, ANGLES, ROPE, STORE_KV, ATTEND, ACTIVATE, GATHER, ARGMAX, REDUCE,
    ROPE_STORE,
    KEYED_UNIFORM, TEMPER, DRAW, TOP_TOKENS, LOG_SOFTMAX, PENALIZE, COUNT_ABOVE, MASK,
    NUM_KINDS,
};

struct Step {
    const void* args;  // the struct of that kind
    Kind kind;
    int32_t mark;      // written to the progress word when the step begins
};

// Some memory.
struct Part {
    void* data;
    int64_t bytes;
};

// ---- entry points ----

struct Pool;

// Threads that are awake through a run and asleep soon after it; the caller is one of them, and only
// one thread may run a pool at a time. In a forked child they are started anew by the first run.
// Null without memory or threads, and where none are asked for.
SHOAL_API Pool* shoal_pool_open(int32_t threads);
SHOAL_API void shoal_pool_close(Pool* pool);

// From the next run on, whenever there is no work, threads other than the caller take the pages of
// these parts, the first ones of each part first, until all are taken; what they hold stays as it is.
// Called once, between runs; the parts and their array outlive the pool.
SHOAL_API void shoal_pool_touch(Pool* pool, const Part* parts, int64_t count);

// Runs steps in order. `progress` may be null. Returns 0, or the number of the step, counted from 1,
// that failed (a rank beside this one is gone, there is no such op, no threads after a fork).
SHOAL_API int64_t shoal_run(Pool* pool, const Step* steps, int64_t count, const Sizes* sizes,
                            volatile int64_t* progress);

// Packs a row-major weight [outputs, inputs] of either dtype into weight->data. Not 0: no threads.
SHOAL_API int32_t shoal_pack(Pool* pool, const Matrix* rows, const Panels* weight);
// What the panels of such a weight take; `data` is not read.
SHOAL_API int64_t shoal_packed_bytes(const Panels* weight);

// The instruction set chosen: "amx", "avx512bf16", "avx512", "avx2"; `shoal_choose` takes another
// of them, for tests, and returns 0 where this machine lacks it.
SHOAL_API const char* shoal_instructions(void);
SHOAL_API int32_t shoal_choose(const char* name);

// Whether the chosen set has an op of this kind.
SHOAL_API int32_t shoal_has(int32_t kind);

// sizeof the struct of a kind; of Step, Sizes, Panels, Part for -1 to -4.
SHOAL_API int64_t shoal_size_of(int32_t kind);
// The digest of the sources that the library was made of.
SHOAL_API const char* shoal_sources(void);
