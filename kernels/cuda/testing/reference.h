// What the kernels must compute, as plain loops: the definitions of the CPU kernels, in their order of rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "../plan.h"

namespace reference {

inline uint32_t bits(float x) {
    uint32_t b;
    std::memcpy(&b, &x, 4);
    return b;
}

inline float widen(uint16_t half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    float x = exponent ? std::ldexp((float)(1024 + mantissa), exponent - 25) : std::ldexp((float)mantissa, -24);
    return half & 0x8000 ? -x : x;
}

// Finite values below 65520 only.
inline uint16_t narrow(float x) {
    uint32_t sign = bits(x) >> 16 & 0x8000;
    float magnitude = std::fabs(x);
    if (magnitude == 0.0f) return (uint16_t)sign;
    int exponent;
    std::frexp(magnitude, &exponent);
    int step = std::max(exponent - 11, -24);
    auto units = (uint32_t)std::nearbyint(std::ldexp(magnitude, -step));
    return (uint16_t)(sign | (uint32_t)(((step + 24) << 10) + (int)units));
}

inline float exp(float x) {
    x = std::max(-104.0f, std::min(89.0f, x));
    float n = std::fma(x, 1.44269504f, 12582912.0f) - 12582912.0f;
    float r = std::fma(n, 1.9046542e-9f, std::fma(n, -0.693147182f, x));
    float p = 0.0013814538f;
    for (float c : {0.008368745f, 0.04166839f, 0.16666521f, 0.49999994f}) p = std::fma(p, r, c);
    return (float)std::ldexp((double)(std::fma(r * r, p, r) + 1.0f), (int)n);
}

template <class T> T tree(T* lanes) {
    for (int half = 8; half > 0; half /= 2) {
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    }
    return lanes[0];
}

inline std::vector<float> rms_norm(const float* x, const float* gamma, int width, float eps) {
    double lanes[2][16] = {};
    for (int i = 0; i < width; i++) lanes[i / 16 % 2][i % 16] += (double)(x[i] * x[i]);
    double sum = tree(lanes[0]);
    sum += tree(lanes[1]);
    float scale = 1.0f / std::sqrt((float)(sum / width) + eps);
    std::vector<float> out(width);
    for (int i = 0; i < width; i++) out[i] = x[i] * scale * gamma[i];
    return out;
}

struct Row {
    std::vector<int8_t> q;
    float scale;
    int sum = 0;
};

inline Row quantize(const std::vector<float>& x) {
    float amax = 0.0f;
    for (float v : x) amax = std::fabs(v) > amax ? std::fabs(v) : amax;
    Row row;
    row.scale = (float)(127.0 / std::max((double)amax, 1e-5));
    for (float v : x) {
        float y = v * row.scale;
        int q = y != y ? 0 : (int)std::nearbyint(std::max(-128.0f, std::min(127.0f, y)));
        row.q.push_back((int8_t)q);
        row.sum += q;
    }
    return row;
}

// Code of one weight; plan.h gives the layout.
inline int code(const std::vector<uint8_t>& tiles, int cols, int row, int k) {
    size_t tile = (size_t)(row / 16) * ((cols + 127) / 128) + k / 128;
    int lane = row % 8 * 4 + k % 16 / 4, r = (row % 16 / 8) + 2 * (k % 32 / 16);
    return tiles[tile * 512 + lane * 16 + k % 128 / 32 * 4 + k % 4] >> (2 * r) & 3;
}

// Runs body(first, last) over parts of 0..count on all cores.
template <class Body> void spread(int count, Body body) {
    int workers = std::max(1, std::min(count, (int)std::thread::hardware_concurrency()));
    std::vector<std::thread> threads;
    for (int w = 0; w < workers; w++) {
        threads.emplace_back([=] { body((int)((long)count * w / workers), (int)((long)count * (w + 1) / workers)); });
    }
    for (std::thread& thread : threads) thread.join();
}

// Exact sums of w * q for all rows of a matrix.
inline std::vector<int> sums(const std::vector<uint8_t>& tiles, int rows, int cols, const Row& x) {
    std::vector<int> out(rows);
    int* to = out.data();
    spread(rows, [&tiles, &x, to, cols](int first, int last) {
        for (int row = first; row < last; row++) {
            int sum = 0;
            for (int k = 0; k < cols; k++) sum += (code(tiles, cols, row, k) - 1) * x.q[k];
            to[row] = sum;
        }
    });
    return out;
}

inline float scaled(int sum, const Row& x, const float* scales) { return (float)sum / x.scale * scales[0] * scales[1]; }

inline float gated(float gate, float up, int epilogue) {
    if (epilogue == EPILOGUE_RELU2) {
        float live = gate > 0.0f ? gate : 0.0f;
        return live * live * up;
    }
    return gate / (1.0f + exp(0.0f - gate)) * up;
}

inline void rotate(float* head, const float* turn, int half, bool pairs) {
    for (int i = 0; i < half; i++) {
        float& a = head[pairs ? 2 * i : i];
        float& b = head[pairs ? 2 * i + 1 : i + half];
        float cos = turn[i], sin = turn[half + i], x = a, y = b;
        a = std::fma(x, cos, -y * sin);
        b = std::fma(x, sin, y * cos);
    }
}

// What a split of some positions adds to a row.
struct Running {
    float greatest = 0.0f, sum = 0.0f;

    void merge(bool first, float most, float total, const std::vector<float>& part, float* out) {
        const int dim = (int)part.size();
        if (first) {
            greatest = most;
            sum = total;
            for (int d = 0; d < dim; d++) out[d] = part[d];
            return;
        }
        float max = std::max(greatest, most), keep = exp(greatest - max), add = exp(most - max);
        greatest = max;
        sum = std::fma(total, add, sum * keep);
        for (int d = 0; d < dim; d++) out[d] = std::fma(part[d], add, out[d] * keep);
    }
};

// One query head over `count` positions; keys and values are rows of `dim` halves.
inline void attend(const float* query, const uint16_t* keys, const uint16_t* values, int count, int dim, float scale,
                   float* out) {
    Running running;
    for (int start = 0; start < count; start += SPLIT) {
        int seen = std::min(count - start, (int)SPLIT);
        std::vector<float> weights(SPLIT), part(dim);
        float most = -INFINITY, lanes[16] = {};
        for (int p = 0; p < seen; p++) {
            float total = 0.0f;
            for (int chain = 0; chain < dim; chain += 32) {
                float dot = 0.0f;
                for (int d = chain; d < std::min(chain + 32, dim); d++) {
                    dot = std::fma(widen(narrow(query[d])), widen(keys[(size_t)(start + p) * dim + d]), dot);
                }
                total += dot;
            }
            weights[p] = total * scale;
            most = std::max(most, weights[p]);
        }
        for (int p = 0; p < seen; p++) {
            weights[p] = exp(weights[p] - most);
            lanes[p % 16] += weights[p];
            for (int d = 0; d < dim; d++) {
                part[d] = std::fma(weights[p], widen(values[(size_t)(start + p) * dim + d]), part[d]);
            }
        }
        running.merge(start == 0, most, tree(lanes), part, out);
    }
    for (int d = 0; d < dim; d++) out[d] /= running.sum;
}

inline float greatest_magnitude(const float* x, int count) {
    float most = 0.0f;
    for (int i = 0; i < count; i++) most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
    return most;
}
inline int bounded(float x, float most) { return (int)std::nearbyint(std::max(-most, std::min(most, x))); }

// Bytes of an int8 cache, one in each element; their scale.
inline uint16_t round_bytes(const float* x, int count, uint16_t* bytes) {
    const uint16_t scale = narrow(greatest_magnitude(x, count) / 127.0f);
    const float inverse = widen(scale) == 0.0f ? 0.0f : 1.0f / widen(scale);
    for (int i = 0; i < count; i++) bytes[i] = (uint8_t)(int8_t)bounded(x[i] * inverse, 127.0f);
    return scale;
}

// Whole numbers of 16 bits; their step.
inline float round_whole(const float* x, int count, std::vector<int>& to) {
    const float most = greatest_magnitude(x, count), inverse = most > 1e-30f ? 32767.0f / most : 0.0f;
    to.clear();
    for (int i = 0; i < count; i++) to.push_back(bounded(x[i] * inverse, 32767.0f));
    return most > 1e-30f ? most / 32767.0f : 0.0f;
}

// The same over an int8 cache, with scales of keys and of values.
inline void attend_bytes(const float* query, const uint16_t* keys, const uint16_t* values, const uint16_t* key_scales,
                         const uint16_t* value_scales, int count, int dim, float scale, float* out) {
    Running running;
    std::vector<int> q, w;
    const float factor = round_whole(query, dim, q) * scale;
    for (int start = 0; start < count; start += SPLIT) {
        const int seen = std::min(count - start, (int)SPLIT);
        std::vector<float> weights(seen), part(dim);
        float most = -INFINITY, lanes[16] = {};
        for (int p = 0; p < seen; p++) {
            int sum = 0;
            for (int d = 0; d < dim; d++) sum += q[d] * (int8_t)keys[(size_t)(start + p) * dim + d];
            weights[p] = (float)sum * widen(key_scales[start + p]) * factor;
            most = std::max(most, weights[p]);
        }
        for (int p = 0; p < seen; p++) {
            weights[p] = exp(weights[p] - most);
            lanes[p % 16] += weights[p];
            weights[p] *= widen(value_scales[start + p]);
        }
        const float step = round_whole(weights.data(), seen, w);
        for (int d = 0; d < dim; d++) {
            int sum = 0;
            for (int p = 0; p < seen; p++) sum += w[p] * (int8_t)values[(size_t)(start + p) * dim + d];
            part[d] = (float)sum * step;
        }
        running.merge(start == 0, most, tree(lanes), part, out);
    }
    for (int d = 0; d < dim; d++) out[d] /= running.sum;
}

// Element of a half-precision matrix of pieces; plan.h gives the layout.
inline size_t piece_index(int cols, int row, int k) {
    return ((size_t)(row / 32) * (cols / 16) + k / 16) * 512 + row % 32 * 16 + k % 16;
}

// The same where the matrix holds floats.
inline size_t wide_index(int cols, int row, int k) {
    size_t tile = ((size_t)(row / 32) * (cols / 16) + k / 16) * 512;
    return tile + row % 32 / 16 * 256 + k % 8 / 4 * 128 + row % 16 * 8 + k % 16 / 8 * 4 + k % 4;
}

template <class Value> std::vector<float> head(const Value& value, int rows, int cols, const std::vector<float>& x) {
    std::vector<float> out(rows);
    float* to = out.data();
    spread(rows, [&value, &x, to, cols](int first, int last) {
        for (int row = first; row < last; row++) {
            float lanes[16] = {};
            for (int k = 0; k < cols; k++) {
                lanes[k % 16] = std::fma(value(row, k), x[k], lanes[k % 16]);
            }
            to[row] = tree(lanes);
        }
    });
    return out;
}

inline float logarithm(float exponent, float mantissa) {
    float z = mantissa / (2.0f + mantissa), square = z * z, sum = 1.0f / 15.0f;
    for (float odd : {13.0f, 11.0f, 9.0f, 7.0f, 5.0f, 3.0f}) sum = sum * square + 1.0f / odd;
    return exponent * 0.693147182f + 2.0f * (z + z * square * sum);
}

// Random words of a draw; philox4x32-10.
struct Words {
    uint32_t counter[4];
};
inline Words words(const Draw& draw, uint32_t third, uint32_t fourth) {
    uint32_t counter[4] = {draw.position[0], draw.position[1], third, fourth};
    uint32_t key[2] = {draw.seed[0], draw.seed[1]};
    for (int round = 0; round < 10; round++) {
        uint64_t first = (uint64_t)counter[0] * 0xd2511f53u, second = (uint64_t)counter[2] * 0xcd9e8d57u;
        const uint32_t next[4] = {(uint32_t)(second >> 32) ^ counter[1] ^ key[0], (uint32_t)second,
                                  (uint32_t)(first >> 32) ^ counter[3] ^ key[1], (uint32_t)first};
        std::memcpy(counter, next, sizeof next);
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
    return {{counter[0], counter[1], counter[2], counter[3]}};
}

// The Gumbel number of a token.
inline float noise(const Draw& draw, int token) {
    auto parts = [](float x, float& mantissa) {
        int exponent;
        mantissa = std::frexp(x, &exponent) - 1.0f;
        return (float)exponent;
    };
    uint32_t word = words(draw, (uint32_t)(token / 64 * 16 + token % 16), 1).counter[token % 64 / 16];
    float v = ((float)word + 0.5f) * 0x1p-32f, rest = ((float)~word + 0.5f) * 0x1p-32f, mantissa;
    float exponent = parts(rest, mantissa);
    float exponential = v <= 0.5f ? -logarithm(0.0f, -v) : -logarithm(exponent, mantissa);
    exponent = parts(exponential, mantissa);
    return -logarithm(exponent, mantissa);
}

// e^x for x <= 0 as the sampler has it.
inline float weight(float x) {
    if (!(x >= -87.0f)) return 0.0f;
    float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    float r = (x - n * 0.6933594f) - n * -2.1219444e-4f, p = 1.0f / 720.0f;
    for (float c : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) p = p * r + c;
    return std::ldexp(p, (int)n);
}

// The token of a draw among the best few.
inline int ranked(const Draw& draw, const std::vector<float>& logits) {
    std::vector<int> ids(logits.size());
    for (size_t i = 0; i < ids.size(); i++) ids[i] = (int)i;
    std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    ids.resize(std::min(ids.size(), (size_t)draw.count));
    std::vector<float> weights;
    double total = 0.0, sum = 0.0;
    for (int id : ids) {
        weights.push_back(weight((logits[id] - logits[ids[0]]) * draw.factor));
        total += weights.back();
    }
    const double mass = (double)draw.top_p * total;
    for (size_t i = 0; draw.top_p < 1.0f && i < weights.size(); i++) {
        sum += weights[i];
        if (sum >= mass) weights.resize(i + 1);
    }
    total = sum = 0.0;
    for (float& w : weights) {
        if (w < draw.min_p) w = 0.0f;
        total += w;
    }
    Words random = words(draw, 0, 0);
    const double target = ((random.counter[0] >> 5) * 67108864.0 + (random.counter[1] >> 6)) / 0x1p53 * total;
    int at = 0;
    for (size_t i = 0; i < weights.size() && sum <= target; i++) {
        sum += weights[i];
        if (weights[i] > 0.0f) at = (int)i;
    }
    return ids[at];
}

// The token of a draw; the greatest logit's without a factor.
inline int draw(const Draw& draw, const std::vector<float>& logits) {
    if (draw.count) return ranked(draw, logits);
    double best = -INFINITY;
    int at = 0;
    for (int i = 0; i < (int)logits.size(); i++) {
        double score = draw.factor == 0.0f ? logits[i] : (double)logits[i] * (double)draw.factor + (double)noise(draw, i);
        if (score > best) at = i;
        best = std::max(best, score);
    }
    return at;
}

} // namespace reference
