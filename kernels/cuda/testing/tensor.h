// Attention of prompts on tensor cores: within what its number formats allow, and the same bits whatever the pieces and the company.
#pragma once

#include "batch.h"
#include "expect.h"

// One query head's attention and how far a result may be from it, by what is rounded: scores are chains of floats, weights are powers
// of two by approximation and then halves (below 2^-14 of fixed size), sums are chains of floats.
struct Bounded {
    std::vector<double> values, errors;

    Bounded(const uint16_t* query, const uint16_t* keys, const uint16_t* of, int count, int dim) : values(dim), errors(dim) {
        const double scale = 1.0 / std::sqrt((double)dim), single = 0x1p-23;
        std::vector<double> scores(count), inexact(count);
        for (int p = 0; p < count; p++) {
            double magnitude = 0.0;
            for (int d = 0; d < dim; d++) {
                const double product = (double)reference::widen(query[d]) * reference::widen(keys[(size_t)p * dim + d]);
                scores[p] += product * scale;
                magnitude += std::fabs(product) * scale;
            }
            inexact[p] = dim * single * magnitude;
        }
        const double most = *std::max_element(scores.begin(), scores.end());
        double all = 0.0, error = 0.0;
        std::vector<double> weights(count);
        for (int p = 0; p < count; p++) {
            weights[p] = std::exp(scores[p] - most);
            inexact[p] += 4 * single * (std::fabs(scores[p]) + std::fabs(most)) + 0x1p-11 + 0x1p-22;
            inexact[p] = inexact[p] * weights[p] + 0x1p-25;
            all += weights[p];
            error += inexact[p];
        }
        for (int d = 0; d < dim; d++) {
            double magnitude = 0.0, apart = 0.0;
            auto value = [=](int p) { return (double)reference::widen(of[(size_t)p * dim + d]); };
            for (int p = 0; p < count; p++) {
                values[d] += weights[p] * value(p) / all;
                magnitude += weights[p] * std::fabs(value(p)) / all;
            }
            for (int p = 0; p < count; p++) apart += inexact[p] * std::fabs(value(p) - values[d]);
            errors[d] = apart / (all - error) + (count / 8 + 64) * single * magnitude;
        }
    }
    // The greatest difference as a share of what is allowed; no number counts as infinite.
    template <class T> double share(const T* results) const {
        double greatest = 0.0;
        for (size_t d = 0; d < values.size(); d++) {
            const double share = std::fabs((double)results[d] - values[d]) / errors[d];
            greatest = share <= greatest ? greatest : share == share ? share : INFINITY;
        }
        return greatest;
    }
};

// A step of one layer with prompts on tensor cores: attention is within its bound, and mostly would not be with a position less.
inline void tensor_agrees(Machine& machine, const Model& model, const std::vector<Segment>& segments) {
    const Shape& shape = model.shape;
    BatchStep step(model, machine, segments);
    std::vector<Cache> caches;
    for (size_t i = 0; i < segments.size(); i++) {
        caches.emplace_back(shape, model.positions, segments[i].start, 100 + i);
        step.loaded.fill((int)i, caches[i], segments[i].start);
    }
    step.layers();
    const size_t width = shape.query_width();
    const std::vector<float> attention = machine.read(step.loaded.step.attention, step.ids.size() * width);
    const std::vector<unsigned short> queries = machine.read(step.loaded.step.queries, step.ids.size() * width);
    double greatest = 0.0;
    int checked = 0, caught = 0;
    for (size_t i = 0, row = 0; i < segments.size(); i++) {
        for (int r = 0; r < segments[i].rows; r++, row++) {
            forward(model, caches[i], step.ids[row], step.positions[row]);
            const int count = segments[i].start + r + 1, dim = shape.head_dim;
            for (int h = 0; segments[i].tensor && h < shape.heads; h++) {
                const size_t at = caches[i].at(shape, 0, h / (shape.heads / shape.kv_heads), 0), own = row * width + (size_t)h * dim;
                const Bounded whole(&queries[own], &caches[i].keys[at], &caches[i].values[at], count, dim);
                greatest = std::max(greatest, whole.share(&attention[own]));
                if (count == 1) continue;
                const Bounded less(&queries[own], &caches[i].keys[at], &caches[i].values[at], count - 1, dim);
                checked++;
                caught += whole.share(less.values.data()) > 1.0;
            }
        }
    }
    char what[200];
    std::snprintf(what, sizeof what, "attention on tensor cores, %zu sequences from %d, heads %d/%d x %d: error at most %.3f of the bound, "
                  "%d of %d beyond it with a position less", segments.size(), segments[0].start, shape.heads, shape.kv_heads,
                  shape.head_dim, greatest, caught, checked);
    expect(greatest <= 1.0 && 2 * caught > checked, what);
}

// A prompt in one piece, and in pieces of a size, alone and beside others: all rows leave the layers with the same bits.
inline void tensor_pieces_agree(Machine& machine, const Model& model, int rows, const std::vector<int>& sizes) {
    const size_t hidden = model.shape.hidden;
    BatchStep whole(model, machine, {{0, rows, true}, {0, 1, true}, {0, 1, true}});
    whole.layers();
    const std::vector<float> all = machine.read(whole.loaded.x, (size_t)rows * hidden);
    for (int size : sizes) {
        size_t wrong = 0;
        unsigned short* pool = nullptr;
        for (int start = 0; start < rows; start += size) {
            const bool beside = start / size % 2 == 1;
            const Segment piece = {start, std::min(size, rows - start), true};
            std::vector<Segment> segments = {piece, {0, 1, true}, {0, 1, true}};
            if (beside) segments = {piece, {0, 29, true}, {0, 1, true}};
            BatchStep step(model, machine, segments);
            if (pool) step.loaded.step.kv_pool = pool;
            pool = step.loaded.step.kv_pool;
            step.layers();
            const std::vector<float> x = machine.read(step.loaded.x, piece.rows * hidden);
            wrong += different(&all[start * hidden], x.data(), x.size());
        }
        char what[120];
        std::snprintf(what, sizeof what, "%d rows on tensor cores, whole and in pieces of %d: %zu values differ", rows, size, wrong);
        expect(wrong == 0, what);
    }
}

inline void small_tensor_suite(Machine& machine) {
    // Heads of 128 with a table that ends within a tile; in two splits; beside others.
    tensor_agrees(machine, Model({128, 1, 4, 1, 128, 40, 40}, 90, 21), {{0, 67, true}});
    tensor_agrees(machine, Model({128, 1, 8, 2, 128, 40, 40}, 1100, 22), {{1010, 20, true}, {70, 5, true}, {5, 1, true}});
    // Sizes that are no multiple of 16, groups of one, three, five and many.
    Shape odd = {128, 1, 4, 4, 40, 40, 40, EPILOGUE_SILU, true};
    tensor_agrees(machine, Model(odd, 300, 23), {{0, 70, true}, {200, 30, true}});
    odd.head_dim = 72;
    odd.kv_heads = 1;
    odd.heads = 3;
    tensor_agrees(machine, Model(odd, 300, 24), {{40, 3}, {190, 30, true}});
    tensor_agrees(machine, Model({128, 1, 10, 2, 16, 40, 40}, 200, 25), {{31, 34, true}});
    tensor_agrees(machine, Model({128, 1, 40, 1, 8, 40, 40}, 100, 26), {{63, 3, true}});
    tensor_pieces_agree(machine, Model({64, 2, 4, 1, 32, 40, 40}, 80, 27), 70, {1, 7, 64});
    tensor_pieces_agree(machine, Model({64, 1, 2, 1, 16, 40, 40}, 1060, 28), 1050, {520});
}
