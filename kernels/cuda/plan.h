// What the host hands to the kernels: phases and the step's buffers. Host and device share this file; the feeder mirrors
// both structs, so fields keep their order and every pointer is 8 bytes.
//
// Two forms, the same bits. The step kernels (step.cu) run a list of phases in one cooperative launch: few rows, each of a
// sequence of its own. The batch kernels (batch.cu) are a launch each, for any number of rows, prompts among them; batch.h
// has their order, grids and shared memory.
#pragma once

// Packed ternary weights. A tile is 16 rows x 128 columns in 512 bytes, row tile after row tile, columns ascending in
// each. Lane L of a warp owns bytes 16 L .. 16 L + 16: four little-endian words, word s for the columns 32 s .. 32 s + 32
// of the tile. With g = L / 4 and t = L % 4, bits 8 j + 2 r (two of them) of word s hold the code w + 1 (0, 1 or 2) of
// row g + 8 (r & 1), column 32 s + 16 (r >> 1) + 4 t + j, for r and j in 0..4. So (word >> 2 r) & 0x03030303 is register
// r of the A operand of mma.m16n8k32. Rows are padded to 16 and columns to 128 with code 1 (weight zero).
// Gate and up matrices share tiles: rows 0..8 of a tile are gate features, rows 8..16 the same features of up.
//
// Quantised rows, in B operand order: [token / 8][column / 128][lane][32 bytes]. Lane 4 g + t of token group n holds token
// 8 n + g; its bytes 8 s + 4 h + j are the columns 32 s + 16 h + 4 t + j. Columns past the width are zero.
//
// Gathered rows, where there are more than 16 on devices from 9.0 on: [token / 128][column / 128][token % 128][128 bytes], columns
// ascending, but 16 bytes c of token t are in place c ^ t % 8: what the tensor cores know as a swizzle of 128 bytes. Up to 32 rows
// are one block of 32. The screen's slots likewise, from more than 32 rows on in blocks of 128, from 65 on of 256.
//
// Pieces: the matrix of head and embedding in half precision. A tile is 32 rows x 16 columns in two pieces of 16 rows, 512 bytes each, row
// tile after row tile: lane L holds row L / 2 of the piece, columns 8 (L % 2) .. + 8. Rows are padded to 32. A matrix that is
// no matrix of halves is kept as floats: a piece is 1024 bytes then, two loads, each of four of a lane's eight columns.
//
// KV cache, F16: [block][layer][kv head][key: head_dim / 8 x 32 positions x 8, then value: 32 positions x head_dim].
//
// KV cache, int8: [block][layer][kv head][tiles of keys, tiles of values, F16 scales of 32 keys, of 32 values]. A tile is one of 512 bytes as the
// screen has: of keys 16 positions x 32 dimensions, [position / 16][dimension / 32]; of values 16 dimensions x 32 positions. Either is an operand
// of mma.m16n8k32, 16 bytes a lane. What pads dimensions is never used.
//
// Screen of the head: the same rows rounded to bytes. A tile is 16 rows x 32 columns in 512 bytes, row tile after row tile,
// columns ascending in each: lane 4 g + t holds four words, word i the columns 16 (i / 2) + 4 t .. + 4 of row g + 8 (i % 2).
// Rows are padded to 16, columns to 128, with zeros. Beside it four floats a row: scale, error, norm and 0; see screen.h.
//
// Rows of step_1 are tagged: 8 bytes a value, the float and then the tag of who wrote it. Zero before the first launch. Tags may wrap
// in a later one, since only those of this launch and the one before are ever there.
enum PhaseKind {
    PHASE_EMBED,
    PHASE_QUANTIZE,
    PHASE_LINEAR,
    PHASE_ATTEND,
    PHASE_HEAD,   // all logits, exactly
    PHASE_GREEDY, // best becomes the next token
    PHASE_SCREEN, // upper bounds of all logits, into `output`, and the best lower bound; see screen_tops in screen.h
    PHASE_CHOOSE, // exact logits of those that may be the greatest: best
    PHASE_COPY,   // step_1: a tagged row becomes plain
};
enum Epilogue { EPILOGUE_STORE, EPILOGUE_ADD, EPILOGUE_RELU2, EPILOGUE_SILU };

// One phase of a step. Between two phases all blocks meet; in step_1 they wait for the values they need.
struct Phase {
    const void* weights;   // LINEAR: ternary tiles. HEAD, EMBED, CHOOSE: pieces. SCREEN: its bytes.
    const float* scales;   // LINEAR: for each half tile of 8 rows, the matrix's scale and a factor applied last. SCREEN: its rows.
    const float* gamma;    // norm weights of the input row; LINEAR without gamma reads quantised rows from Step.
    const float* input;    // rows of `cols` floats; unused by a LINEAR without gamma.
    float* output;         // `rows` floats of each row (`rows / 2` for RELU2 and SILU); ADD: not written by the phase before.
    int kind, epilogue;
    int rows, cols;        // of the matrix; ATTEND: `rows` is the layer.
    int tiles, items;      // row tiles; 512-byte loads of one row tile. ATTEND of prompts: `items` multiprocessors; of decode rows by
                           // the batch kernels: keys or values of so many cache blocks have room.
    int stride;            // floats from one output row to the next
    int first_block;       // block of row tile 0: continues where the phase before ended, so that loads even out. The step kernels deal
                           // tiles to the blocks from there on in turn, step_1 in runs.
    float eps;
    int order;             // step_1: phases that wait for nothing of each other share it; input is of `order - 1`
    int residual;          // step_1, ADD: order of who last wrote `output`
    int plain;             // QUANTIZE, and LINEAR with gamma: no norm, rows are rounded as they are; gamma holds ones. ATTEND: keys and
                           // values are bytes, by other kernels.
    int wide;              // EMBED, HEAD, CHOOSE, and SCREEN where it is made: pieces hold floats. ATTEND of single rows: they may be of one
                           // sequence, since keys and values of them all were stored by the launch before.
};

// What a draw depends on beside the logits. The factor is one over the temperature; 0 is no draw, but the greatest logit.
struct Draw {
    unsigned seed[2], position[2];
    float factor;
    int count;          // 0: among all, kernels/src/draw.rs. Else among so many best, 2 to RANKED_MAX, runtime/src/sampler,
    float top_p, min_p; // of these the fewest that hold top_p, and of those all with at least min_p of the best one's weight
};

// The best of some tokens: its key, 0 where there is none.
struct Chosen {
    unsigned long long key;
    int token, unused;
};

// Buffers and shape of one step of `tokens` rows. Rows of one sequence, its prompt, are successive positions.
struct Step {
    int tokens, hidden, vocab, layers;
    int heads, kv_heads, head_dim, rope_half;
    int rope_pairs;        // 0: value i rotates with i + rope_half; 1: value 2 i with 2 i + 1.
    int unit_heads;        // query heads of one attention unit, 1 to 4, a divisor of heads / kv_heads.
    int group;             // heads / kv_heads
    int splits_max;        // at least position / 256 + 1 of every row.
    int table_stride;      // entries of one sequence in block_table.
    int head_tokens;       // rows of one pass of the head, 1 to HEAD_TOKENS_MAX.
    float score_scale;     // 1 / sqrt(head_dim)
    int* token_ids;        // in: token of each row, ~i for the token i of `earlier`; GREEDY overwrites it with the next one, or NO_TOKEN
    int* positions;        // of each row; GREEDY adds 1
    const int* block_table; // cache blocks of each sequence, table_stride entries each
    unsigned short* kv_pool;
    const float* rope;     // per position: rope_half cosines, then sines
    const float* qkv;      // rows of (heads + 2 kv_heads) head_dim floats
    float* attention;      // rows of heads * head_dim floats
    float* partial;        // [row][head][splits_max][head_dim + 2]: unscaled values, greatest score, sum of weights
    unsigned* arrived;     // [row][heads]: splits done; zero between steps
    signed char* quantized; // batch kernels: room for the next multiple of 128 rows
    float* quantized_scale;
    int* quantized_sum;
    float* logits;         // rows of vocab floats
    unsigned long long* best; // of each row: ordered logit << 32 | ~token; zero between steps
    unsigned* barrier;     // two words: the meetings of blocks, zero before the first launch, and step_1's last tag
    long long* trace;      // null, or two clock values of block 0 for each phase: before and after the barrier
    const int* sequences;  // of each row: its sequence in block_table
    unsigned short* queries; // batch kernels: rows of heads * head_dim rotated F16 queries, for prompts
    const int* picked;     // HEAD, GREEDY: the step's rows that are meant, `tokens` of them; null: all
    unsigned* lower;       // SCREEN: of each row, the greatest lower bound in the order of integers; zero between steps
    signed char* screened; // batch kernels, SCREEN: two B operand tokens a row, upper and lower bytes, or two gathered ones; for 128 tokens more
    float* screen_rows;    // likewise: four floats a row, see ScreenRow
    float* normed;         // likewise: rows of hidden floats
    const int* prompt_tiles; // batch kernels: of each tile of a prompt first row, rows (1 to PROMPT_PAIRS or TENSOR_PAIRS / group), split, first position
    const int* earlier;    // token_ids of the step before, which has not been waited for
    const Draw* draws;     // batch kernels, SCREEN: of each picked row; null: greatest logits
    Chosen* chosen;        // likewise: the best of each 2048 tokens
    float* query_factors;  // batch kernels, int8 cache: of each row and query head; `queries` are whole numbers of 16 bits then
    int* told;             // batch kernels: where the host looks for the tokens of the rows,
    unsigned long long* done; // and, last, for the number of the step,
    const unsigned long long* number; // which is this
};

enum {
    THREADS = 512,
    WARPS = THREADS / 32,
    TILES_MAX = 8,         // row tiles of one block in one LINEAR phase
    KV_BLOCK = 32,
    SPLIT = 256,
    TENSOR_PAIRS = 64,     // attention of prompts on tensor cores: of a tile, and positions of its splits
    TENSOR_SPLIT = 1024,
    HEAD_DIM_MAX = 128,
    UNIT_HEADS_MAX = 4,
    HEAD_TOKENS_MAX = 2,
    GATHERED_ROWS = 128,
    EARLY_ROWS_MAX = 256,  // rows of a norm whose next launch begins beside it
    RANKED_MAX = 256,
    GROUPS_MAX = 4,        // step_1: column groups of 128 of one warp, so rows of up to 8192
    REDUCED_BYTES = 1152,  // shared memory of a block's reductions
    FIRST_UNIT_BYTES = 128,
    SUPPLY_BYTES = 96,     // step_1: what is known of the ring
    NO_TOKEN = 0x7fffffff, // of a row that has no logit above minus infinity; as an input it counts as token 0
};

// Loads in flight of each thread: 128 KiB a block where shared memory has 227 KiB, 32 KiB where it has 163.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
enum { RING_DEPTH = 4 };
#else
enum { RING_DEPTH = 16 };
#endif
