// Steps by the batch kernels: prompts and decode rows together, against the reference.
#pragma once

#include <array>

#include "model.h"

const std::vector<const char*> BATCH_KERNELS = {"embed_rows", "norm_rows",  "norm_kept", "norm_short", "linear_8", "linear_narrow", "linear_16",  "linear_32", "linear_held", "linear_pair_32", "linear_pair_64",
                                                "linear_64",  "linear_128", "linear_wide", "attend_rows", "attend_few", "store_rows", "attend_prompt", "attend_tensor", "attend_tensor_128",
                                                "attend_byte_rows", "store_byte_rows", "attend_byte_prompt",
                                                "pack_screen", "norm_screen", "screen_16",   "screen_64",
                                                "screen_128", "screen_256", "choose_rows", "draw_rows", "take_rows", "rank_rows", "pick_rows", "tell_rows"};

// Rows of one sequence in a step; `tensor`: of a prompt whose attention is computed on tensor cores.
struct Segment {
    int start, rows;
    bool tensor = false;
};

// The launches of `phases`, those of the layers of one step; embed first, without the head.
inline std::vector<Launch> layer_launches(const Step& step, const std::vector<Phase>& phases, const BatchRows& rows, const BatchLimits& limits) {
    std::vector<Launch> launches;
    for (const Phase& p : phases) {
        switch (p.kind) {
        case PHASE_EMBED: launches.push_back(batch::embed(step, p)); break;
        case PHASE_QUANTIZE: launches.push_back(batch::norm(step, p)); break;
        case PHASE_LINEAR: launches.push_back(batch::linear(step, p, limits)); break;
        case PHASE_ATTEND:
            if (rows.prompts || rows.stored) launches.push_back(batch::store(step, rows, p));
            if (rows.decodes) launches.push_back(batch::attend(step, rows, p, limits));
            if (rows.prompt_tiles) launches.push_back(batch::attend_prompt(step, rows, p, limits));
            if (rows.tensor_tiles) launches.push_back(batch::attend_tensor(step, rows, p));
            break;
        default: break;
        }
    }
    return launches;
}
inline BatchLimits limits_of(const Machine& machine) { return {machine.blocks(), machine.cluster_max()}; }
inline std::vector<Launch> layer_launches(const Loaded& loaded, const BatchRows& rows) {
    return layer_launches(loaded.step, loaded.phases, rows, limits_of(loaded.machine));
}

// The same by two parts of the rows, for launches beside each other; the second one empty where there are no two.
inline std::array<std::vector<Launch>, 2> layer_parts(const Loaded& loaded, const BatchRows& rows) {
    const BatchLimits limits = limits_of(loaded.machine);
    const int beside = batch::rows_beside(rows, limits), first = rows.decodes - beside;
    if (!beside) return {layer_launches(loaded, rows), {}};
    const Shape& s = loaded.model.shape;
    const int widest = (std::max(std::max(s.hidden, s.ffn), s.query_width()) + 127) / 128 * 128;
    std::vector<Phase> moved;
    for (const Phase& p : loaded.phases) moved.push_back(batch::phase_from(p, first));
    return {layer_launches(batch::step_of(loaded.step, 0, first, widest), loaded.phases, {first, 0, 0, 0, false}, limits),
            layer_launches(batch::step_of(loaded.step, first, beside, widest), moved, {beside, 0, 0, 0, false}, limits)};
}

// A step of several segments: those of one row first, those for tensor cores last.
struct BatchStep {
    Loaded loaded;
    std::vector<Segment> segments;
    BatchRows rows = {0, 0, 0, 0, false};
    std::vector<int> ids, positions, sequences, last;
    std::vector<std::array<int, 4>> tiles; // first row, rows, split, first position
    // Of each segment: two of three are drawn; the same and some among their best few.
    std::vector<Draw> draws, ranked;

    // By the positions of its split that a tile sees.
    static void longest_first(std::vector<std::array<int, 4>>& tiles, int length) {
        const auto seen = [=](const std::array<int, 4>& t) { return std::min(t[3] + t[1] - t[2] * length, length); };
        std::stable_sort(tiles.begin(), tiles.end(), [&](const auto& a, const auto& b) { return seen(a) > seen(b); });
    }
    static int count(const std::vector<Segment>& segments) {
        int rows = 0;
        for (const Segment& s : segments) rows += s.rows;
        return rows;
    }
    // `stored`: every row stands alone.
    BatchStep(const Model& model, Machine& machine, const std::vector<Segment>& of, bool stored = false)
        : loaded(model, machine, count(of), (int)of.size()), segments(of) {
        rows.stored = stored;
        const int pairs = batch::prompt_pairs({machine.blocks(), machine.cluster_max()});
        std::vector<std::array<int, 4>> tensor_tiles;
        for (int i = 0; i < (int)of.size(); i++) {
            int first = (int)ids.size();
            for (int r = 0; r < of[i].rows; r++) {
                ids.push_back(((of[i].start + r + 131 * i) * 7919 + 3) % model.shape.vocab);
                positions.push_back(of[i].start + r);
                sequences.push_back(i);
            }
            last.push_back((int)ids.size() - 1);
            unsigned seed = (unsigned)i * 0x9e3779b9u;
            draws.push_back({{seed, ~seed}, {(unsigned)(of[i].start + of[i].rows), 0}, i % 3 == 2 ? 0.0f : 0.7f + 0.3f * (float)i, 0, 1.0f, 0.0f});
            ranked.push_back(draws.back());
            if (i % 3 == 0) {
                ranked.back().count = 2 + i * 7 % 60;
                ranked.back().top_p = i % 2 ? 1.0f : 0.9f;
                ranked.back().min_p = i % 4 == 3 ? 0.05f : 0.0f;
            }
            const bool tensor = of[i].tensor, decode = stored || (of[i].rows == 1 && !tensor && rows.prompts == 0);
            (decode ? rows.decodes : rows.prompts) += of[i].rows;
            const int tile = (tensor ? (int)TENSOR_PAIRS : pairs) / loaded.step.group, length = tensor ? TENSOR_SPLIT : SPLIT;
            for (int r = 0; !decode && r < of[i].rows; r += tile) {
                const int count = std::min(tile, of[i].rows - r), position = of[i].start + r;
                for (int split = 0; split * length < position + count; split++) {
                    (tensor ? tensor_tiles : tiles).push_back({first + r, count, split, position});
                }
            }
        }
        rows.prompt_tiles = (int)tiles.size();
        rows.tensor_tiles = (int)tensor_tiles.size();
        longest_first(tiles, SPLIT);
        longest_first(tensor_tiles, TENSOR_SPLIT);
        tiles.insert(tiles.end(), tensor_tiles.begin(), tensor_tiles.end());
        Step& s = loaded.step;
        s.sequences = machine.copy_of(sequences);
        s.prompt_tiles = (const int*)machine.copy_of(tiles);
        s.picked = machine.copy_of(last);
        std::vector<int> sent = ids;
        for (int t = 0; t < (int)ids.size(); t += 3) sent[t] = ~t;
        s.earlier = machine.copy_of(ids);
        loaded.set_rows(sent, positions);
    }

    void layers() const {
        for (const auto& part : layer_parts(loaded, rows)) {
            for (const Launch& launch : part) loaded.machine.launch(launch);
        }
    }
    // Next tokens alone, by the screen: the draws', or the best without any.
    std::vector<Launch> screened_head(const std::vector<Draw>& of = {}) const {
        Step s = loaded.step;
        s.tokens = (int)last.size();
        s.draws = of.empty() ? nullptr : loaded.machine.copy_of(of);
        const bool some_drawn = std::any_of(of.begin(), of.end(), [](const Draw& draw) { return draw.factor != 0.0f && draw.count == 0; });
        const bool some_ranked = std::any_of(of.begin(), of.end(), [](const Draw& draw) { return draw.count != 0; });
        std::vector<Launch> launches = {batch::norm_screen(s, loaded.screen), batch::screen(s, loaded.screen, {loaded.machine.blocks(), loaded.machine.cluster_max()})};
        if (some_drawn) launches.push_back(batch::draw(s, loaded.screen));
        if (some_ranked) launches.push_back(batch::rank(s, loaded.choose));
        launches.push_back(batch::choose(s, loaded.choose));
        launches.push_back(batch::take(s));
        if (some_ranked) launches.push_back(batch::pick(s, loaded.choose));
        return launches;
    }
    // Logits and next tokens of the last row of each segment, by the step kernel's phases.
    void head() const {
        // As many at a time as the blocks of the machine take.
        const int most = HEAD_TOKENS_MAX * loaded.machine.blocks();
        for (int first = 0; first < (int)last.size(); first += most) {
            Step s = loaded.step;
            s.tokens = std::min(most, (int)last.size() - first);
            s.head_tokens = loaded.head_tokens(s.tokens);
            s.picked += first;
            std::vector<Phase> head(loaded.phases.end() - 2, loaded.phases.end());
            head[0].output += (long)first * s.vocab;
            s.logits += (long)first * s.vocab;
            loaded.machine.run(1, loaded.shared_bytes(2, 1), loaded.machine.copy_of(head), 2, s);
        }
    }
};
