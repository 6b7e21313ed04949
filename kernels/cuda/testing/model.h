// A random model, its forward pass by the reference, and the same pass as phases for the step kernel.
#pragma once

#include "../batch.h"
#include "reference.h"

// For Machine::run: step_1 is 0.
enum { STEP_1_BYTES = -1 };

// Where kernels run: the emulator or a device. Memory is addressed by plain pointers on both.
struct Machine {
    virtual ~Machine() = default;
    virtual int blocks() const = 0;
    virtual void* alloc(size_t bytes) = 0;
    virtual void upload(void* to, const void* from, size_t bytes) = 0;
    virtual void download(void* to, const void* from, size_t bytes) = 0;
    virtual void run(int token_tiles, int shared_bytes, const Phase* phases, int count, const Step& step) = 0;
    virtual void launch(const Launch& launch) = 0;
    virtual int cluster_max() const = 0;

    template <class T> T* copy_of(const std::vector<T>& values) {
        T* at = (T*)alloc(values.size() * sizeof(T) + 16);
        upload(at, values.data(), values.size() * sizeof(T));
        return at;
    }
    template <class T> T* filled(size_t count, int byte) {
        const size_t all = count * sizeof(T) + 16;
        std::vector<uint8_t> bytes(std::min(all, (size_t)16 << 20), (uint8_t)byte);
        uint8_t* at = (uint8_t*)alloc(all);
        for (size_t done = 0; done < all; done += bytes.size()) upload(at + done, bytes.data(), std::min(all - done, bytes.size()));
        return (T*)at;
    }
    template <class T> std::vector<T> read(const T* from, size_t count) {
        std::vector<T> out(count);
        download(out.data(), from, count * sizeof(T));
        return out;
    }
};

struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 1) {}
    uint64_t bits() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
    int below(int n) { return (int)((bits() >> 33) % (uint64_t)n); }
    float uniform(float span) { return ((float)(bits() >> 40) / 8388608.0f - 1.0f) * span; }
};

struct Shape {
    int hidden, layers, heads, kv_heads, head_dim, ffn, vocab;
    int epilogue = EPILOGUE_RELU2;
    bool rope_pairs = false;
    bool wide = false; // the head holds floats that are no halves
    bool bytes = false; // an int8 cache
    int query_width() const { return heads * head_dim; }
    int qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
};

const Shape BITNET_2B4T = {2560, 30, 20, 5, 128, 6912, 128256};

struct Matrix {
    int rows, cols;
    std::vector<uint8_t> tiles;
    std::vector<float> scales; // two for each half tile
    std::vector<float> gamma;  // norm weights of the input
    int row_tiles() const { return (rows + 15) / 16; }
    int items() const { return (cols + 127) / 128; }
};

// Every byte holds four codes below 3. Columns past the width meet zero activations: their codes do not matter.
inline Matrix random_matrix(int rows, int cols, uint64_t seed) {
    Matrix m = {rows, cols, {}, {}, {}};
    m.tiles.resize((size_t)m.row_tiles() * m.items() * 512);
    uint8_t* to = m.tiles.data();
    size_t per_tile = (size_t)m.items() * 512;
    reference::spread(m.row_tiles(), [=](int first, int last) {
        Random random(seed * 1000003 + (uint64_t)first);
        for (size_t i = first * per_tile; i < last * per_tile; i++) {
            uint32_t draw = (uint32_t)(random.bits() >> 32) % 81;
            to[i] = (uint8_t)(draw % 3 | draw / 3 % 3 << 2 | draw / 9 % 3 << 4 | draw / 27 << 6);
        }
    });
    Random random(seed);
    for (int i = 0; i < 2 * m.row_tiles(); i++) {
        m.scales.push_back((1.0f + random.uniform(0.3f)) / std::sqrt((float)cols));
        m.scales.push_back(i % 3 == 0 ? 1.0f : 1.0f + random.uniform(0.1f));
    }
    for (int i = 0; i < cols; i++) m.gamma.push_back(1.0f + random.uniform(0.5f));
    return m;
}

struct Layer {
    Matrix qkv, o, gate_up, down;
};

struct Model {
    Shape shape;
    std::vector<Layer> layers;
    std::vector<uint16_t> head;
    std::vector<float> output_gamma, rope;
    int positions;
    float eps = 1e-5f;

    Model(Shape s, int positions_max, uint64_t seed) : shape(s), positions(positions_max) {
        for (int l = 0; l < s.layers; l++) {
            uint64_t at = seed + 10 * (uint64_t)l;
            layers.push_back({random_matrix(s.qkv_width(), s.hidden, at + 1),
                              random_matrix(s.hidden, s.query_width(), at + 2),
                              random_matrix((s.ffn + 7) / 8 * 16, s.hidden, at + 3),
                              random_matrix(s.hidden, s.ffn, at + 4)});
            layers.back().gate_up.rows = 2 * s.ffn;
        }
        head.resize((size_t)(s.vocab + 31) / 32 * 32 * s.hidden);
        uint16_t* to = head.data();
        reference::spread((s.vocab + 31) / 32, [=](int first, int last) {
            Random random(seed * 77 + (uint64_t)first);
            for (size_t i = (size_t)first * 32 * s.hidden; i < (size_t)last * 32 * s.hidden; i++) {
                uint32_t r = (uint32_t)(random.bits() >> 32);
                to[i] = (uint16_t)((r & 0x83ff) | (7 + (r >> 16) % 4) << 10);
            }
        });
        Random random(seed);
        for (int i = 0; i < s.hidden; i++) output_gamma.push_back(1.0f + random.uniform(0.5f));
        for (int p = 0; p < positions; p++) {
            for (int part = 0; part < 2; part++) {
                float angle = (float)p, ratio = (float)std::pow(5e5, -2.0 / s.head_dim);
                for (int i = 0; i < s.head_dim / 2; i++, angle *= ratio) {
                    rope.push_back((float)(part ? std::sin((double)angle) : std::cos((double)angle)));
                }
            }
        }
    }
};

inline float head_value(const Model& m, int row, int k) {
    float half = reference::widen(m.head[reference::piece_index(m.shape.hidden, row, k)]);
    return m.shape.wide ? half * 1.0003f : half;
}

// Keys and values of one sequence, [layer][kv head][position][head_dim]: halves, or bytes and the scales of each position.
struct Cache {
    std::vector<uint16_t> keys, values, key_scales, value_scales;
    int positions;
    Cache(const Shape& s, int positions_max, int filled, uint64_t seed) : positions(positions_max) {
        size_t heads = (size_t)s.layers * s.kv_heads;
        keys.resize(heads * positions * s.head_dim);
        values.resize(keys.size());
        key_scales.resize(heads * positions);
        value_scales.resize(heads * positions);
        Random random(seed);
        for (size_t h = 0; s.bytes && h < heads; h++) {
            for (int p = 0; p < filled; p++) {
                std::vector<float> x(2 * s.head_dim);
                for (float& value : x) value = random.uniform(2.0f);
                put(s, h, p, x.data(), x.data() + s.head_dim);
            }
        }
        for (size_t h = 0; !s.bytes && h < heads; h++) {
            for (int i = 0; i < filled * s.head_dim; i++) {
                keys[h * positions * s.head_dim + i] = reference::narrow(random.uniform(2.0f));
                values[h * positions * s.head_dim + i] = reference::narrow(random.uniform(2.0f));
            }
        }
    }
    size_t at(const Shape& s, int layer, int head, int position) const {
        return (((size_t)layer * s.kv_heads + head) * positions + position) * s.head_dim;
    }
    // One position of head h of all layers.
    void put(const Shape& s, size_t h, int position, const float* key, const float* value) {
        const size_t place = h * positions + position, at = place * s.head_dim;
        if (s.bytes) {
            key_scales[place] = reference::round_bytes(key, s.head_dim, &keys[at]);
            value_scales[place] = reference::round_bytes(value, s.head_dim, &values[at]);
            return;
        }
        for (int d = 0; d < s.head_dim; d++) {
            keys[at + d] = reference::narrow(key[d]);
            values[at + d] = reference::narrow(value[d]);
        }
    }
};

// Logits after token `id` at `position`.
inline std::vector<float> forward(const Model& m, Cache& cache, int id, int position) {
    const Shape& s = m.shape;
    std::vector<float> x(s.hidden);
    for (int k = 0; k < s.hidden; k++) x[k] = head_value(m, id, k);
    auto linear = [&](const Matrix& w, const std::vector<float>& in, std::vector<float>& out, bool add) {
        reference::Row row = reference::quantize(reference::rms_norm(in.data(), w.gamma.data(), w.cols, m.eps));
        std::vector<int> sums = reference::sums(w.tiles, w.rows, w.cols, row);
        for (int r = 0; r < w.rows; r++) {
            float y = reference::scaled(sums[r], row, &w.scales[r / 8 * 2]);
            out[r] = add ? out[r] + y : y;
        }
    };
    for (int l = 0; l < s.layers; l++) {
        const Layer& layer = m.layers[l];
        std::vector<float> qkv(s.qkv_width()), attention(s.query_width()), gate_up(2 * s.ffn + 16), ffn(s.ffn);
        linear(layer.qkv, x, qkv, false);
        const float* turn = &m.rope[(size_t)position * s.head_dim];
        for (int h = 0; h < s.heads + s.kv_heads; h++) {
            reference::rotate(&qkv[h * s.head_dim], turn, s.head_dim / 2, s.rope_pairs);
        }
        for (int h = 0; h < s.kv_heads; h++) {
            const float* key = &qkv[(s.heads + h) * s.head_dim];
            cache.put(s, (size_t)l * s.kv_heads + h, position, key, key + s.kv_heads * s.head_dim);
        }
        for (int h = 0; h < s.heads; h++) {
            size_t at = cache.at(s, l, h / (s.heads / s.kv_heads), 0);
            if (s.bytes) {
                const size_t place = at / s.head_dim;
                reference::attend_bytes(&qkv[h * s.head_dim], &cache.keys[at], &cache.values[at], &cache.key_scales[place], &cache.value_scales[place],
                                        position + 1, s.head_dim, 1.0f / std::sqrt((float)s.head_dim), &attention[h * s.head_dim]);
                continue;
            }
            reference::attend(&qkv[h * s.head_dim], &cache.keys[at], &cache.values[at], position + 1, s.head_dim,
                              1.0f / std::sqrt((float)s.head_dim), &attention[h * s.head_dim]);
        }
        linear(layer.o, attention, x, true);
        Matrix const& w = layer.gate_up;
        reference::Row row = reference::quantize(reference::rms_norm(x.data(), w.gamma.data(), w.cols, m.eps));
        std::vector<int> sums = reference::sums(w.tiles, w.row_tiles() * 16, w.cols, row);
        for (int f = 0; f < s.ffn; f++) {
            int gate = f / 8 * 16 + f % 8;
            ffn[f] = reference::gated(reference::scaled(sums[gate], row, &w.scales[f / 8 * 4]),
                                      reference::scaled(sums[gate + 8], row, &w.scales[f / 8 * 4 + 2]), s.epilogue);
        }
        linear(layer.down, ffn, x, true);
    }
    auto value = [&m](int row, int k) { return head_value(m, row, k); };
    return reference::head(value, s.vocab, s.hidden, reference::rms_norm(x.data(), m.output_gamma.data(), s.hidden, m.eps));
}

// A model on a machine: buffers for up to `tokens` rows, and the phases of a whole step.
struct Loaded {
    const Model& model;
    Machine& machine;
    Step step = {}, token_step = {};
    std::vector<Phase> phases;
    Phase* phases_there = nullptr;
    float *x, *ffn, *upper = nullptr;
    // One row by step_1: with the screened head, and with a copy of the last row for the whole head.
    Phase screen = {}, choose = {};
    Phase *token_there = nullptr, *copy_there = nullptr;
    int token_count = 0, copy_count = 0;
    std::vector<int> table;
    int token_tiles, blocks_per_row, sequences;

    // `sequences_max` sequences have room in the cache, as many as rows where it is 0.
    Loaded(const Model& m, Machine& on, int tokens, int sequences_max = 0)
        : model(m), machine(on), sequences(sequences_max ? sequences_max : tokens) {
        const Shape& s = m.shape;
        blocks_per_row = (m.positions + KV_BLOCK - 1) / KV_BLOCK;
        token_tiles = tokens <= 8 ? 1 : tokens <= 16 ? 2 : 4;
        step.tokens = tokens;
        step.hidden = s.hidden;
        step.vocab = s.vocab;
        step.layers = s.layers;
        step.heads = s.heads;
        step.kv_heads = s.kv_heads;
        step.head_dim = s.head_dim;
        step.rope_half = s.head_dim / 2;
        step.rope_pairs = s.rope_pairs;
        step.group = s.heads / s.kv_heads;
        step.splits_max = 1;
        step.table_stride = blocks_per_row;
        step.score_scale = 1.0f / std::sqrt((float)s.head_dim);
        step.head_tokens = head_tokens(tokens);
        step.unit_heads = unit_heads(tokens);
        x = on.filled<float>((size_t)tokens * s.hidden, 0xff);
        ffn = on.filled<float>((size_t)tokens * s.ffn, 0xff);
        step.qkv = on.filled<float>((size_t)tokens * s.qkv_width(), 0xff);
        step.attention = on.filled<float>((size_t)tokens * s.query_width(), 0xff);
        int splits = m.positions / SPLIT + 1;
        step.partial = on.filled<float>((size_t)tokens * s.heads * splits * (s.head_dim + 2), 0xff);
        step.arrived = on.filled<unsigned>((size_t)tokens * s.heads, 0);
        int widest = (std::max(std::max(s.hidden, s.ffn), s.query_width()) + 127) / 128 * 128;
        step.quantized = on.filled<signed char>((size_t)(tokens + 127) / 128 * 128 * widest, 0x55);
        step.quantized_scale = on.filled<float>(tokens, 0xff);
        step.quantized_sum = on.filled<int>(tokens, 0x55);
        step.logits = on.filled<float>((size_t)tokens * s.vocab, 0xff);
        step.best = on.filled<unsigned long long>(tokens, 0);
        step.barrier = on.filled<unsigned>(2, 0);
        step.lower = on.filled<unsigned>(tokens, 0);
        step.token_ids = on.filled<int>(tokens, 0);
        step.positions = on.filled<int>(tokens, 0);
        step.rope = on.copy_of(m.rope);
        step.kv_pool = on.filled<unsigned short>(pool_len(), 0x3c);
        // Blocks in an order of their own, so that a table that is not read shows.
        for (int i = 0; i < sequences * blocks_per_row; i++) table.push_back(sequences * blocks_per_row - 1 - i);
        step.block_table = on.copy_of(table);
        std::vector<int> identity;
        for (int i = 0; i < tokens; i++) identity.push_back(i % sequences);
        step.sequences = on.copy_of(identity);
        step.queries = on.filled<unsigned short>((size_t)tokens * s.query_width(), 0xff);
        step.query_factors = on.filled<float>((size_t)tokens * s.heads, 0xff);
        plan();
    }

    // Of a head block, and of all; in halves.
    size_t head_block_len() const {
        const Shape& s = model.shape;
        return s.bytes ? (size_t)batch::head_block_bytes(s.head_dim) / 2 : 2 * KV_BLOCK * (size_t)s.head_dim;
    }
    size_t pool_len() const { return (size_t)sequences * blocks_per_row * model.shape.layers * model.shape.kv_heads * head_block_len(); }

    int head_tokens(int tokens) const {
        int groups = (tokens + HEAD_TOKENS_MAX - 1) / HEAD_TOKENS_MAX;
        return std::max((tokens + groups - 1) / groups, (tokens + machine.blocks() - 1) / machine.blocks());
    }
    // Fewer rounds of units against more heads in each; a unit costs about as much as three heads besides.
    int unit_heads(int tokens) const {
        int best = 1, least = 1 << 30;
        for (int n = 1; n <= UNIT_HEADS_MAX; n++) {
            if (model.shape.heads / model.shape.kv_heads % n) continue;
            int units = tokens * model.shape.heads / n * (model.positions / SPLIT + 1);
            int cost = (units + machine.blocks() - 1) / machine.blocks() * (3 + n);
            if (cost < least) best = n;
            least = std::min(least, cost);
        }
        return best;
    }

    struct There {
        const uint8_t* tiles;
        const float *scales, *gamma;
    };
    There there(const Matrix& w) { return {machine.copy_of(w.tiles), machine.copy_of(w.scales), machine.copy_of(w.gamma)}; }

    static Phase phase(PhaseKind kind) {
        Phase p = {};
        p.kind = kind;
        return p;
    }
    void plan() {
        const Shape& s = model.shape;
        const void* pieces = copy_of_head();
        std::vector<There> weights;
        for (const Layer& layer : model.layers) {
            for (const Matrix* w : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) weights.push_back(there(*w));
        }
        Phase head = phase(PHASE_HEAD);
        head.weights = pieces;
        head.gamma = machine.copy_of(model.output_gamma);
        head.input = x;
        head.output = step.logits;
        head.rows = s.vocab;
        head.cols = s.hidden;
        head.tiles = (s.vocab + 31) / 32;
        head.items = s.hidden / (s.wide ? 4 : 8);
        head.wide = s.wide;
        head.eps = model.eps;
        phases = layers({x, (float*)step.qkv, step.attention, ffn, false}, weights, pieces);
        phases.push_back(head);
        phases.push_back(phase(PHASE_GREEDY));
        phases_there = machine.copy_of(phases);
        plan_screen(head);
        if (step.tokens == 1) plan_token(weights, head);
    }

    const void* copy_of_head() const {
        const Shape& s = model.shape;
        if (!s.wide) return machine.copy_of(model.head);
        std::vector<float> floats(model.head.size());
        for (int row = 0; row < (s.vocab + 31) / 32 * 32; row++) {
            for (int k = 0; k < s.hidden; k++) floats[reference::wide_index(s.hidden, row, k)] = head_value(model, row, k);
        }
        return machine.copy_of(floats);
    }

    void plan_screen(const Phase& head) {
        const Shape& s = model.shape;
        const size_t columns = (size_t)(s.hidden + 127) / 128 * 128, slots = (size_t)(2 * step.tokens + 255) / 256 * 256;
        upper = machine.filled<float>((size_t)step.tokens * (s.vocab + (s.vocab + 15) / 16 * 2), 0xff);
        step.screened = machine.filled<signed char>(slots * columns, 0x55);
        step.screen_rows = machine.filled<float>((size_t)step.tokens * 4, 0xff);
        step.normed = machine.filled<float>((size_t)step.tokens * s.hidden, 0xff);
        step.chosen = machine.filled<Chosen>((size_t)step.tokens * ((s.vocab + 2047) / 2048), 0xff);
        screen = head;
        screen.kind = PHASE_SCREEN;
        screen.tiles = (s.vocab + 15) / 16;
        screen.items = (int)columns / 32;
        screen.weights = machine.filled<uint8_t>((size_t)screen.tiles * screen.items * 512, 0x55);
        screen.scales = machine.filled<float>((size_t)screen.tiles * 64, 0xff);
        screen.output = upper;
        // A matrix of halves has whole groups of 16 columns; models that only try the norm have none.
        if (s.hidden % 16 == 0) machine.launch(batch::pack_screen(screen, head.weights));
        choose = head;
        choose.kind = PHASE_CHOOSE;
        choose.input = upper;
    }

    // One row: its buffers are tagged.
    void plan_token(const std::vector<There>& weights, const Phase& head) {
        const Shape& s = model.shape;
        token_step = step;
        float* tagged[4];
        const int widths[4] = {s.hidden, s.qkv_width(), s.query_width(), s.ffn};
        for (int i = 0; i < 4; i++) tagged[i] = machine.filled<float>(2 * (size_t)widths[i], 0);
        token_step.qkv = tagged[1];
        token_step.attention = tagged[2];
        std::vector<Phase> token = layers({tagged[0], tagged[1], tagged[2], tagged[3], true}, weights, head.weights);
        std::vector<Phase> copied = token;
        Phase copy = phase(PHASE_COPY);
        copy.order = screen.order = token.back().order + 1;
        copy.input = screen.input = tagged[0];
        copy.output = x;
        copy.cols = s.hidden;
        copied.push_back(copy);
        token.push_back(screen);
        choose.order = screen.order + 1;
        token.push_back(choose);
        token.push_back(phase(PHASE_GREEDY));
        token.back().order = choose.order + 1;
        token_count = (int)token.size();
        copy_count = (int)copied.size();
        // Tags wrap in the third launch.
        const unsigned first_tag = 0u - 2 * (unsigned)token.back().order;
        machine.upload(step.barrier + 1, &first_tag, sizeof first_tag);
        token_there = machine.copy_of(token);
        copy_there = machine.copy_of(copied);
    }

    struct Buffers {
        float *x, *qkv, *attention, *ffn;
        bool tagged;
    };
    // Embedding and layers.
    std::vector<Phase> layers(const Buffers& to, const std::vector<There>& weights, const void* pieces) const {
        const Shape& s = model.shape;
        std::vector<Phase> list;
        Phase embed = phase(PHASE_EMBED);
        embed.weights = pieces;
        embed.wide = s.wide;
        embed.output = to.x;
        embed.rows = s.vocab;
        embed.cols = s.hidden;
        embed.items = s.hidden / 8;
        embed.order = 1;
        list.push_back(embed);
        int first = 0;
        for (int l = 0; l < s.layers; l++) {
            const Layer& layer = model.layers[l];
            const There* w = &weights[4 * l];
            add_linear(list, to, layer.qkv, w[0], to.x, to.qkv, EPILOGUE_STORE, first);
            Phase attend = phase(PHASE_ATTEND);
            attend.rows = l;
            attend.plain = s.bytes;
            attend.order = list.back().order + 1;
            list.push_back(attend);
            add_linear(list, to, layer.o, w[1], to.attention, to.x, EPILOGUE_ADD, first);
            add_linear(list, to, layer.gate_up, w[2], to.x, to.ffn, s.epilogue, first);
            add_linear(list, to, layer.down, w[3], to.ffn, to.x, EPILOGUE_ADD, first);
        }
        return list;
    }

    // Rows of a batch are rounded in a phase of their own, a single one by each block for itself.
    void add_linear(std::vector<Phase>& list, const Buffers& to, const Matrix& w, const There& there, const float* input,
                    float* output, int epilogue, int& first) const {
        const int order = list.back().order + 1;
        Phase p = phase(PHASE_QUANTIZE);
        p.gamma = there.gamma;
        p.input = input;
        p.cols = w.cols;
        p.eps = model.eps;
        if (!to.tagged) {
            list.push_back(p);
            p.gamma = nullptr;
        }
        p.kind = PHASE_LINEAR;
        p.epilogue = epilogue;
        p.items = w.items();
        p.order = order;
        // x is written by the embedding and by both ADDs: before o by three phases ago, before down by two.
        p.residual = order - (input == to.attention ? 3 : 2);
        bool gates = epilogue >= EPILOGUE_RELU2;
        p.stride = gates ? w.rows / 2 : w.rows;
        // No block has more than TILES_MAX row tiles of one phase.
        const int most = TILES_MAX * machine.blocks();
        for (int tile = 0; tile < w.row_tiles(); tile += most) {
            p.tiles = std::min(most, w.row_tiles() - tile);
            p.rows = std::min(w.rows - tile * 16, p.tiles * 16);
            p.weights = there.tiles + (size_t)tile * w.items() * 512;
            p.scales = there.scales + tile * 4;
            p.output = output + tile * (gates ? 8 : 16) * (to.tagged ? 2 : 1);
            p.first_block = first;
            list.push_back(p);
            first = (first + p.tiles) % machine.blocks();
        }
    }

    int shared_bytes(int count, int tiles) const {
        const Shape& s = model.shape;
        return step_shared_bytes(step, count, std::max(std::max(s.hidden, s.ffn), s.query_width()), tiles);
    }

    void fill(int row, const Cache& cache, int count) {
        const Shape& s = model.shape;
        size_t head_block = head_block_len(), block = head_block * s.layers * s.kv_heads;
        std::vector<uint16_t> bytes(block, 0x7e81);
        for (int b = 0; b * KV_BLOCK < count; b++) {
            for (size_t h = 0; h < (size_t)s.layers * s.kv_heads; h++) {
                uint16_t* to = &bytes[h * head_block];
                if (s.bytes) {
                    fill_bytes(to, cache, h, b);
                    continue;
                }
                for (int i = 0; i < KV_BLOCK * s.head_dim; i++) {
                    int p = i / s.head_dim, d = i % s.head_dim;
                    size_t at = (h * cache.positions + std::min(b * KV_BLOCK + p, cache.positions - 1)) * s.head_dim + d;
                    to[(d / 8 * KV_BLOCK + p) * 8 + d % 8] = cache.keys[at];
                    to[(KV_BLOCK + p) * s.head_dim + d] = cache.values[at];
                }
            }
            machine.upload(step.kv_pool + table[row * blocks_per_row + b] * block, bytes.data(), block * 2);
        }
    }

    // plan.h gives the layout.
    void fill_bytes(uint16_t* to, const Cache& cache, size_t h, int b) const {
        const int dim = model.shape.head_dim, key_tiles = batch::divided(dim, 32), value_tiles = batch::divided(dim, 16);
        uint8_t* bytes = (uint8_t*)to;
        auto in_tile = [](int row, int column) { return (row % 8 * 4 + column % 16 / 4) * 16 + (column / 16 * 2 + row / 8) * 4 + column % 4; };
        for (int p = 0; p < KV_BLOCK; p++) {
            const size_t place = h * cache.positions + std::min(b * KV_BLOCK + p, cache.positions - 1);
            for (int d = 0; d < dim; d++) {
                bytes[(p / 16 * key_tiles + d / 32) * 512 + in_tile(p % 16, d % 32)] = (uint8_t)cache.keys[place * dim + d];
                bytes[(2 * key_tiles + d / 16) * 512 + in_tile(d % 16, p)] = (uint8_t)cache.values[place * dim + d];
            }
            uint16_t* scales = to + (2 * key_tiles + value_tiles) * 256;
            scales[p] = cache.key_scales[place];
            scales[KV_BLOCK + p] = cache.value_scales[place];
        }
    }

    // Phases first..last, in one launch.
    void run(int first, int last) const {
        machine.run(token_tiles, shared_bytes(last - first, token_tiles), phases_there + first, last - first, step);
    }
    int step_1() const { return model.shape.bytes ? STEP_1_BYTES : 0; }
    // One row: a whole step with the screened head.
    void run_token() const {
        machine.run(step_1(), shared_bytes(token_count, 0), token_there, token_count, token_step);
    }
    // One row: all logits of it.
    void run_token_logits() const {
        machine.run(step_1(), shared_bytes(copy_count, 0), copy_there, copy_count, token_step);
        run((int)phases.size() - 2, (int)phases.size());
    }
    void set_rows(const std::vector<int>& ids, const std::vector<int>& positions) {
        machine.upload(step.token_ids, ids.data(), ids.size() * 4);
        machine.upload(step.positions, positions.data(), positions.size() * 4);
        step.splits_max = *std::max_element(positions.begin(), positions.end()) / SPLIT + 1;
        token_step.splits_max = step.splits_max;
    }
};
