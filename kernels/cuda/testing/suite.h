// What must hold on every machine that runs the kernels.
#pragma once

#include <string>

#include "tensor.h"

// Steps of `starts.size()` sequences with starts[i] positions behind them: all logits and tokens are the reference's, bit
// for bit. `one_by_one` launches each phase alone.
inline void steps_agree(Machine& machine, const Model& model, std::vector<int> starts, int steps, bool one_by_one) {
    int tokens = (int)starts.size();
    Loaded loaded(model, machine, tokens);
    std::vector<Cache> caches;
    std::vector<int> ids, positions = starts;
    for (int t = 0; t < tokens; t++) {
        caches.emplace_back(model.shape, model.positions, starts[t], 100 + t);
        loaded.fill(t, caches[t], starts[t]);
        ids.push_back((t * 7919 + 3) % model.shape.vocab);
    }
    size_t wrong = 0, wrong_ids = 0;
    int* earlier = machine.filled<int>(tokens, 0);
    loaded.step.earlier = loaded.token_step.earlier = earlier;
    for (int i = 0; i < steps; i++) {
        // Every other token is one that the step before gave.
        machine.upload(earlier, ids.data(), ids.size() * 4);
        std::vector<int> sent = ids;
        for (int t = i % 2; t < tokens; t += 2) sent[t] = ~t;
        loaded.set_rows(sent, positions);
        int count = (int)loaded.phases.size();
        std::vector<float> upper;
        int screened = -1;
        if (tokens == 1) {
            loaded.run_token();
            upper = machine.read(loaded.upper, model.shape.vocab);
            screened = machine.read(loaded.step.token_ids, 1)[0];
            loaded.set_rows(sent, positions);
            loaded.run_token_logits();
        } else {
            for (int p = 0; p < count; p += one_by_one ? 1 : count) loaded.run(p, one_by_one ? p + 1 : count);
        }
        std::vector<float> logits = machine.read(loaded.step.logits, (size_t)tokens * model.shape.vocab);
        std::vector<int> next = machine.read(loaded.step.token_ids, tokens);
        for (int t = 0; t < tokens; t++) {
            std::vector<float> expected = forward(model, caches[t], ids[t], positions[t]);
            wrong += different(expected.data(), &logits[(size_t)t * model.shape.vocab], expected.size());
            int best = (int)(std::max_element(expected.begin(), expected.end()) - expected.begin());
            wrong_ids += best != next[t];
            wrong_ids += tokens == 1 && screened != best;
            for (size_t r = 0; r < upper.size(); r++) wrong += !(upper[r] >= expected[r]);
            ids[t] = best;
            positions[t]++;
        }
    }
    char what[200];
    std::snprintf(what, sizeof what, "%d steps, %d rows, hidden %d, heads %d/%d x %d, %s%s: %zu logits and %zu tokens differ",
                  steps, tokens, model.shape.hidden, model.shape.heads, model.shape.kv_heads, model.shape.head_dim,
                  one_by_one ? "a launch a phase" : "one launch", model.shape.bytes ? ", int8 cache" : "", wrong, wrong_ids);
    expect(wrong == 0 && wrong_ids == 0, what);
}

// Norm and rounding of odd rows, among them one whose mean falls between two floats, so that the order of adding decides.
// By the step kernels and by the batch kernels.
inline void rows_agree(Machine& machine, int width, bool plain) {
    Model model({width, 0, 1, 1, 16, 16, 16}, 16, 5);
    int tokens = 8;
    Loaded loaded(model, machine, tokens);
    std::vector<float> x((size_t)tokens * width), gamma(width);
    Random random(11);
    for (int i = 0; i < tokens * width; i++) x[i] = random.uniform(3.0f);
    for (int i = 0; i < width; i++) {
        gamma[i] = plain ? 1.0f : 1.0f + random.uniform(0.9f);
        x[width + i] = 0.0f;
        x[2 * width + i] = i % 4 ? 1.0f : 1.00000012f;
        x[3 * width + i] = random.uniform(1.0f) * (i % 5 ? 1e-20f : 1e18f);
        x[4 * width + i] = i == width - 1 ? -5.0f : 1e-6f;
    }
    x[5 * width + 3] = NAN;
    // Two that are greatest, equal or apart by one rounding: before scaling neither leads.
    for (int t = 6; t < 8; t++) {
        for (int k : {1, width - 2}) x[t * width + k] = 50.0f / gamma[k];
    }
    x[7 * width + 1] = -std::nextafter(x[7 * width + 1], 0.0f);
    Phase phase = Loaded::phase(PHASE_QUANTIZE);
    phase.gamma = machine.copy_of(gamma);
    phase.input = machine.copy_of(x);
    phase.cols = width;
    phase.eps = 1e-5f;
    phase.plain = plain;
    int items = (width + 127) / 128;
    size_t wrong = 0;
    for (bool batch : {false, true}) {
        if (!batch && width > 4096) continue; // wider than any hidden size that a step kernel has room for
        machine.upload(loaded.step.quantized, std::vector<char>((size_t)items * 1024, 0x55).data(), (size_t)items * 1024);
        if (batch) {
            machine.launch(batch::norm(loaded.step, phase));
        } else {
            machine.run(1, loaded.shared_bytes(1, 1), machine.copy_of(std::vector<Phase>{phase}), 1, loaded.step);
        }
        auto q = machine.read(loaded.step.quantized, (size_t)items * 1024);
        auto scale = machine.read(loaded.step.quantized_scale, tokens);
        auto sum = machine.read(loaded.step.quantized_sum, tokens);
        for (int t = 0; t < tokens; t++) {
            std::vector<float> normed(&x[t * width], &x[t * width] + width);
            if (!plain) normed = reference::rms_norm(normed.data(), gamma.data(), width, 1e-5f);
            reference::Row row = reference::quantize(normed);
            wrong += reference::bits(scale[t]) != reference::bits(row.scale);
            wrong += sum[t] != row.sum;
            for (int k = 0; k < items * 128; k++) {
                int at = (k / 128 * 32 + t * 4 + k % 16 / 4) * 32 + k % 128 / 32 * 8 + k % 32 / 16 * 4 + k % 4;
                wrong += q[at] != (k < width ? row.q[k] : 0);
            }
        }
    }
    char what[100];
    std::snprintf(what, sizeof what, "rows of %d to int8%s: %zu values differ", width, plain ? ", no norm" : "", wrong);
    expect(wrong == 0, what);
}

// One step of the batch kernels: logits of each segment's last row are the reference's, bit for bit, and so is its token.
// `stored`: every row stands alone, those of prompts too.
inline void batch_agrees(Machine& machine, const Model& model, const std::vector<Segment>& segments, bool stored = false) {
    BatchStep step(model, machine, segments, stored);
    std::vector<Cache> caches;
    for (size_t i = 0; i < segments.size(); i++) {
        caches.emplace_back(model.shape, model.positions, segments[i].start, 100 + i);
        step.loaded.fill((int)i, caches[i], segments[i].start);
    }
    step.layers();
    for (const Launch& launch : step.screened_head(step.draws)) machine.launch(launch);
    std::vector<int> drawn = machine.read(step.loaded.step.token_ids, step.ids.size());
    for (const Launch& launch : step.screened_head(step.ranked)) machine.launch(launch);
    std::vector<int> ranked = machine.read(step.loaded.step.token_ids, step.ids.size());
    for (const Launch& launch : step.screened_head()) machine.launch(launch);
    std::vector<int> screened = machine.read(step.loaded.step.token_ids, step.ids.size());
    const int vocab = model.shape.vocab, tiles = (vocab + 15) / 16;
    const bool tops = segments.size() > 8 && machine.cluster_max() > 1;
    std::vector<float> upper = machine.read(step.loaded.upper, segments.size() * (tops ? vocab + tiles : vocab));
    step.head();
    std::vector<float> logits = machine.read(step.loaded.step.logits, segments.size() * vocab);
    std::vector<int> next = machine.read(step.loaded.step.token_ids, step.ids.size());
    size_t wrong = 0, wrong_ids = 0;
    for (size_t i = 0, row = 0; i < segments.size(); i++) {
        std::vector<float> expected;
        for (int r = 0; r < segments[i].rows; r++, row++) {
            expected = forward(model, caches[i], step.ids[row], step.positions[row]);
        }
        wrong += different(expected.data(), &logits[i * vocab], expected.size());
        const float best = *std::max_element(expected.begin(), expected.end());
        for (int r = 0; r < vocab; r++) {
            // Of 16 rows without the best only the greatest bound may be there.
            const float top = tops ? upper[segments.size() * vocab + i * tiles + r / 16] : 0.0f;
            if (tops) wrong += !(top >= expected[r]);
            wrong += !(upper[i * vocab + r] >= expected[r]) && !(tops && top < best);
        }
        wrong_ids += screened[row - 1] != next[row - 1];
        wrong_ids += drawn[row - 1] != reference::draw(step.draws[i], expected);
        wrong_ids += ranked[row - 1] != reference::draw(step.ranked[i], expected);
        wrong_ids += std::max_element(expected.begin(), expected.end()) - expected.begin() != next[row - 1];
    }
    char what[200];
    std::snprintf(what, sizeof what, "batch of %d %s and %d of prompts, hidden %d, heads %d/%d x %d%s: %zu logits and "
                  "%zu tokens differ", step.rows.decodes, stored ? "single rows" : "decode rows", step.rows.prompts, model.shape.hidden, model.shape.heads,
                  model.shape.kv_heads, model.shape.head_dim, model.shape.bytes ? ", int8 cache" : "", wrong, wrong_ids);
    expect(wrong == 0 && wrong_ids == 0, what);
}

// A row that has no logit above minus infinity has no token, drawn or not, beside others that have theirs; the step after takes
// it for token 0.
inline void nothing_is_no_token(Machine& machine, const Model& model) {
    BatchStep step(model, machine, {{3, 1}, {5, 1}, {9, 1}});
    const int hidden = model.shape.hidden;
    for (size_t i = 0; i < 3; i++) step.loaded.fill((int)i, Cache(model.shape, model.positions, step.segments[i].start, 100 + i), step.segments[i].start);
    step.layers();
    std::vector<float> nothing(hidden, NAN);
    machine.upload(step.loaded.x + hidden, nothing.data(), hidden * 4);
    size_t wrong = 0;
    auto look = [&] {
        std::vector<int> tokens = machine.read(step.loaded.step.token_ids, 3);
        for (int t = 0; t < 3; t++) wrong += (tokens[t] == NO_TOKEN) != (t == 1) || (t != 1 && tokens[t] >= model.shape.vocab);
    };
    std::vector<Draw> among_best = step.draws;
    for (Draw& draw : among_best) {
        draw.count = 5;
        draw.factor = 1.0f;
    }
    for (const std::vector<Draw>& draws : {step.draws, among_best, {}}) {
        for (const Launch& launch : step.screened_head(draws)) machine.launch(launch);
        look();
    }
    step.head();
    look();
    Step after = step.loaded.step;
    after.earlier = machine.copy_of(std::vector<int>{NO_TOKEN});
    after.token_ids = machine.copy_of(std::vector<int>{NO_TOKEN, ~0, 0});
    machine.launch(batch::embed(after, step.loaded.phases[0]));
    std::vector<float> x = machine.read(step.loaded.x, 3 * hidden);
    for (int t = 0; t < 2; t++) wrong += different(&x[t * hidden], &x[2 * hidden], hidden);
    char what[80];
    std::snprintf(what, sizeof what, "a row without logits, hidden %d: %zu differ", hidden, wrong);
    expect(wrong == 0, what);
}

// Draws whose best few nothing is known of before all logits are there, more than a block keeps at a time.
inline void draws_rank_without_bounds(Machine& machine) {
    Model model({128, 1, 2, 1, 32, 40, 6001}, 40, 17);
    BatchStep step(model, machine, {{3, 1}, {5, 1}, {9, 1}});
    std::vector<Draw> draws = step.draws;
    size_t wrong = 0;
    for (int i = 0; i < 3; i++) draws[i] = {{7, 9}, {(unsigned)i, 0}, 0.02f, i == 0 ? 256 : 3, 1.0f, 0.0f};
    for (int i = 0; i < 3; i++) step.loaded.fill(i, Cache(model.shape, model.positions, step.segments[i].start, 100 + i), step.segments[i].start);
    step.layers();
    for (const Launch& launch : step.screened_head(draws)) {
        if (launch.kernel != std::string("rank_rows")) machine.launch(launch);
    }
    std::vector<int> tokens = machine.read(step.loaded.step.token_ids, 3);
    step.head();
    std::vector<float> logits = machine.read(step.loaded.step.logits, 3 * (size_t)model.shape.vocab);
    for (int i = 0; i < 3; i++) {
        const float* of = &logits[(size_t)i * model.shape.vocab];
        wrong += tokens[i] != reference::draw(draws[i], std::vector<float>(of, of + model.shape.vocab));
    }
    char what[80];
    std::snprintf(what, sizeof what, "draws without a bound: %zu differ", wrong);
    expect(wrong == 0, what);
}

// Rows that all have the same logit, more than a block keeps at a time: the best few are those with the lowest ids.
inline void equal_logits_rank_by_id(Machine& machine) {
    Model model({128, 1, 2, 1, 32, 40, 6001}, 40, 16);
    for (float& gamma : model.output_gamma) gamma = 0.0f;
    BatchStep step(model, machine, {{3, 1}, {5, 1}, {9, 1}});
    const std::vector<float> nothing(model.shape.vocab, 0.0f);
    step.layers();
    std::vector<Draw> draws = step.draws;
    size_t wrong = 0;
    for (int i = 0; i < 3; i++) draws[i] = {{7, 9}, {(unsigned)i, 0}, 1.0f, i == 0 ? 2 : 1 << (4 * i), i == 1 ? 0.5f : 1.0f, 0.0f};
    for (const Launch& launch : step.screened_head(draws)) machine.launch(launch);
    std::vector<int> tokens = machine.read(step.loaded.step.token_ids, 3);
    for (int i = 0; i < 3; i++) wrong += tokens[i] != reference::draw(draws[i], nothing) || tokens[i] >= draws[i].count;
    char what[80];
    std::snprintf(what, sizeof what, "draws among equal logits: %zu differ", wrong);
    expect(wrong == 0, what);
}

// One row of embeddings that are all zero, of which none leads the others, or whose mean of squares is half way between two floats.
inline void odd_tokens_agree(Machine& machine) {
    for (int kind = 0; kind < 3; kind++) {
        Model model({128, 1, 4, 2, 32, 272, 100}, 40, 20);
        for (float& gamma : model.layers[0].qkv.gamma) gamma = 1.0f;
        for (int row = 0; row < 100; row++) {
            for (int k = 0; k < 128; k++) {
                const float odd = kind == 0 ? 0.0f : kind == 1 ? (k % 2 ? 0.75f : -0.75f) : k < 64 ? 1.0f : k == 64 ? 0.001953125f : 0.0f;
                model.head[reference::piece_index(128, row, k)] = reference::narrow(odd);
            }
        }
        steps_agree(machine, model, {5}, 1, false);
    }
}

inline void small_tokens_agree(Machine& machine) {
    Model squared({160, 2, 4, 2, 32, 272, 517}, 300, 1);
    steps_agree(machine, squared, {0}, 2, false);
    Shape gated = {128, 1, 8, 2, 128, 200, 100, EPILOGUE_SILU, true};
    steps_agree(machine, Model(gated, 800, 2), {700}, 1, false);
    odd_tokens_agree(machine);
}

// Steps over an int8 cache: decode rows around a cache block, half a split and a whole one, prompts of one split and of several, heads of a
// size that fills no tile, groups of one head, of four, of none of these, and of more than fit a tile.
inline void small_bytes_suite(Machine& machine) {
    Shape shape = {128, 1, 8, 2, 128, 160, 100, EPILOGUE_SILU, true};
    shape.bytes = true;
    batch_agrees(machine, Model(shape, 600, 8), {{0, 1}, {31, 1}, {127, 1}, {128, 1}, {254, 1}, {255, 1}, {256, 1}, {520, 1}, {0, 41}, {250, 19}});
    batch_agrees(machine, Model(shape, 600, 8), {{0, 1}, {255, 1}, {520, 2}, {0, 35}, {250, 9}}, true);
    steps_agree(machine, Model(shape, 800, 2), {700}, 1, false);
    shape = {160, 2, 4, 2, 32, 272, 517};
    shape.bytes = true;
    batch_agrees(machine, Model(shape, 300, 1), {{40, 1}, {0, 21}, {5, 3}}, true);
    steps_agree(machine, Model(shape, 300, 1), {0}, 2, false);
    steps_agree(machine, Model(shape, 300, 1), {254}, 3, false);
    batch_agrees(machine, Model(shape, 300, 1), {{40, 1}, {3, 1}, {0, 21}, {5, 3}});
    shape = {128, 1, 10, 2, 80, 160, 100};
    shape.bytes = true;
    steps_agree(machine, Model(shape, 300, 3), {127}, 1, false);
    batch_agrees(machine, Model(shape, 300, 3), {{127, 1}, {270, 1}, {30, 9}});
    shape = {128, 1, 2, 2, 40, 160, 100};
    shape.bytes = true;
    batch_agrees(machine, Model(shape, 900, 4), {{270, 1}, {800, 70}});
    shape = {128, 1, 16, 1, 16, 160, 100};
    shape.bytes = true;
    batch_agrees(machine, Model(shape, 40, 5), {{9, 1}, {0, 30}});
}

// What the host is told at the end of a step.
inline void tokens_are_told(Machine& machine) {
    std::vector<int> ids(700);
    for (size_t t = 0; t < ids.size(); t++) ids[t] = (int)t * 3 + 1;
    Step s = {};
    s.tokens = (int)ids.size() - 1;
    s.token_ids = machine.copy_of(ids);
    s.told = machine.copy_of(std::vector<int>(ids.size(), 0));
    s.done = machine.copy_of(std::vector<unsigned long long>{0});
    s.number = machine.copy_of(std::vector<unsigned long long>{1ull << 40 | 5});
    machine.launch(batch::tell(s));
    std::vector<int> told = machine.read(s.told, ids.size());
    const bool same = std::equal(ids.begin(), ids.end() - 1, told.begin()) && told.back() == 0;
    expect(same && machine.read(s.done, 1)[0] == (1ull << 40 | 5), "tokens and number of a step for the host");
}

inline void small_suite(Machine& machine) {
    tokens_are_told(machine);
    small_bytes_suite(machine);
    small_tensor_suite(machine);
    small_tokens_agree(machine);
    rows_agree(machine, 132, false);
    rows_agree(machine, 132, true);
    rows_agree(machine, 2560, false);
    rows_agree(machine, 6912, false);
    rows_agree(machine, 8320, false);
    Model squared({160, 2, 4, 2, 32, 272, 517}, 300, 1);
    steps_agree(machine, squared, {7, 9}, 1, true);
    steps_agree(machine, squared, {31, 0, 64}, 2, false);
    Shape gated = {128, 1, 8, 2, 128, 200, 100, EPILOGUE_SILU, true};
    steps_agree(machine, Model(gated, 800, 2), {255, 256, 700}, 2, false);
    Shape wide = gated;
    wide.wide = true;
    steps_agree(machine, Model(wide, 300, 8), {255}, 2, false);
    steps_agree(machine, Model(wide, 300, 8), {255, 3, 9}, 1, false);
    batch_agrees(machine, Model(wide, 40, 8), {{30, 1}, {2, 3}});
    // Decode rows around half a split, a whole one, and in several.
    batch_agrees(machine, Model(gated, 600, 8), {{126, 1}, {127, 1}, {128, 1}, {254, 1}, {255, 1}, {256, 1}, {520, 1}});
    // Rows of prompts that stand alone as those do: few, and many.
    batch_agrees(machine, Model(gated, 600, 8), {{30, 2}}, true);
    batch_agrees(machine, Model(gated, 600, 8), {{126, 1}, {255, 1}, {520, 3}, {0, 35}, {250, 9}}, true);
    gated.head_dim = 80;
    batch_agrees(machine, Model(gated, 300, 8), {{127, 1}, {128, 1}, {270, 1}});
    batch_agrees(machine, Model(gated, 300, 8), {{127, 1}, {126, 4}, {270, 1}}, true);
    steps_agree(machine, Model(gated, 40, 3), {5, 0, 31, 1, 2, 3, 4, 6, 30}, 1, false);
    gated.head_dim = 16;
    steps_agree(machine, Model(gated, 40, 4), std::vector<int>(std::min(19, HEAD_TOKENS_MAX * machine.blocks()), 3), 1, false);
    batch_agrees(machine, squared, {{40, 1}, {3, 1}, {0, 21}, {5, 3}});
    batch_agrees(machine, squared, {{40, 1}, {3, 1}, {0, 21}, {5, 3}}, true);
    nothing_is_no_token(machine, squared);
    equal_logits_rank_by_id(machine);
    draws_rank_without_bounds(machine);
    // Columns split over clusters, the second size of the screen.
    batch_agrees(machine, Model({128, 1, 8, 4, 64, 1100, 300}, 40, 6),
                 {{39, 1}, {3, 1}, {9, 1}, {31, 1}, {0, 1}, {2, 1}, {5, 1}, {7, 1}, {1, 12}});
    batch_agrees(machine, Model({128, 1, 4, 2, 256, 160, 100, EPILOGUE_SILU, true}, 300, 7), {{3, 20}, {250, 9}});
    // Few rows by blocks of a single row tile, by clusters, by warpgroups, by blocks without clusters, and by clusters that hold all columns.
    for (int rows : {3, 13, 27, 40}) {
        std::vector<Segment> few;
        for (int i = 0; i < rows; i++) few.push_back({i * 7 % 39, 1});
        batch_agrees(machine, Model({128, 1, 8, 4, 64, 1300, 300}, 40, 6), few);
    }
    // 64 and 128 rows a block, more than one block of them, columns that a cluster splits and columns that it does not;
    // prompts of six splits.
    batch_agrees(machine, Model({128, 1, 2, 1, 32, 40, 40}, 1300, 12), {{9, 1}, {0, 45}, {1275, 9}});
    batch_agrees(machine, Model({512, 1, 4, 1, 32, 532, 40}, 140, 13), {{31, 1}, {0, 129}, {5, 3}});
    // Blocks that stay for three pieces of work, each of more stages than there is room for.
    batch_agrees(machine, Model({1152, 1, 2, 1, 32, 896, 40}, 310, 15), {{3, 300}});
    // Screens of 128 and 256 slots, the latter's more than one block of them, with more work than blocks.
    Model narrow({640, 1, 2, 1, 32, 40, 1100}, 40, 14);
    for (int rows : {40, 140, 300}) batch_agrees(machine, narrow, std::vector<Segment>(rows, {9, 1}));
    // Linears by blocks for a part of the rows, and of up to 64 rows with more columns than there are places for codes.
    Model paired({256, 1, 2, 1, 32, 272, 40}, 40, 16);
    for (int rows : {20, 40, 100}) batch_agrees(machine, paired, std::vector<Segment>(rows, {9, 1}));
    batch_agrees(machine, Model({2304, 1, 2, 1, 32, 320, 40}, 40, 17), std::vector<Segment>(33, {9, 1}));
    // Groups of query heads that are one, not whole fours, and more than four.
    for (int heads : {2, 10, 16}) {
        batch_agrees(machine, Model({128, 1, heads, 2, 32, 160, 300}, 600, 9), {{270, 1}, {3, 1}, {540, 1}});
    }
    gated.head_dim = 40;
    batch_agrees(machine, Model(gated, 400, 5), {{300, 1}, {250, 19}});
}
