// An int8 KV cache: where its bytes are, how rows are rounded, and products with it. They are of whole numbers, on tensor cores: exact, so the
// bits of kernels/src/attention/bytes.rs. Keys or values are the operand of 16 rows; queries or weights, of 16 bits, that of eight
// columns: once their high bytes, once their low ones.
#pragma once

#include "attention.h"

// A head block.
struct ByteLayout {
    int key_tiles, value_tiles; // of 16 positions; of all

    DEVICE explicit ByteLayout(int head_dim) : key_tiles((head_dim + 31) / 32), value_tiles((head_dim + 15) / 16) {}
    DEVICE int key_bytes() const { return key_tiles * 1024; }
    DEVICE int scales() const { return key_bytes() + value_tiles * 512; }
    DEVICE int bytes() const { return scales() + 4 * KV_BLOCK; }
    DEVICE unsigned char* block(const Step& s, int number, int head) const {
        return (unsigned char*)s.kv_pool + ((long long)number * (s.layers * s.kv_heads) + head) * bytes();
    }
    // A byte of the key, or of the value, in a slot.
    DEVICE int key_place(int slot, int d) const {
        return (slot / 16 * key_tiles + d / 32) * 512 + (slot % 8 * 4 + d % 16 / 4) * 16 + (d % 32 / 16 * 2 + slot % 16 / 8) * 4 + d % 4;
    }
    DEVICE int value_place(int slot, int d) const {
        return key_bytes() + d / 16 * 512 + (d % 8 * 4 + slot % 16 / 4) * 16 + (slot / 16 * 2 + d % 16 / 8) * 4 + slot % 4;
    }
    // Dimensions d .. + 4, d a multiple of 4.
    DEVICE void put_key(unsigned char* block, int slot, int d, unsigned word) const { *(unsigned*)(block + key_place(slot, d)) = word; }
    DEVICE void put_value(unsigned char* block, int slot, int d, unsigned word) const {
        unsigned char* to = block + value_place(slot, d);
#pragma unroll
        for (int j = 0; j < 4; j++) to[j * 64] = (unsigned char)(word >> 8 * j);
    }
    DEVICE unsigned short* scale(unsigned char* block, bool value, int slot) const {
        return (unsigned short*)(block + scales()) + (value ? KV_BLOCK : 0) + slot;
    }
};

// The nearest whole number, ties to even, what is no number being the least.
DEVICE int bounded(float x, float most) {
    return (int)(bits_of_float(fminf(fmaxf(x, -most), most) + 12582912.0f) - 0x4b400000u);
}

// Of numbers with this greatest magnitude: the F16 scale of their bytes, and what to multiply them with.
struct ByteScale {
    unsigned short half;
    float inverse;

    DEVICE explicit ByteScale(float most) : half(half_of_float(most / 127.0f)) {
        const float wide = float_of_one(half);
        inverse = wide == 0.0f ? 0.0f : 1.0f / wide;
    }
    DEVICE int byte(float x) const { return bounded(x * inverse, 127.0f); }
    DEVICE unsigned word(const float* x) const { return pack(byte(x[0]), byte(x[1]), byte(x[2]), byte(x[3])); }
};

// The same of whole numbers of 16 bits: their step, and what to multiply with.
DEVICE float whole_step(float most) { return most > 1e-30f ? most / 32767.0f : 0.0f; }
DEVICE float whole_inverse(float most) { return most > 1e-30f ? 32767.0f / most : 0.0f; }
DEVICE int whole(float x) { return bounded(x, 32767.0f); }

// 16 rows by eight columns: sums of the columns' high bytes, b.x and b.y, and of their low ones.
struct WholeSums {
    int high[4], low[4];

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 4; i++) high[i] = low[i] = 0;
    }
    DEVICE void add(const uint4& rows, const uint4& b) {
        const unsigned a[4] = {rows.x, rows.y, rows.z, rows.w};
        mma_signed(high, a, b.x, b.y);
        mma_by_unsigned(low, a, b.z, b.w);
    }
    // Exact; as the nearest float.
    DEVICE int whole(int i) const { return 256 * high[i] + low[i]; }
    DEVICE float of(int i) const { return (float)whole(i); }
};

enum { BYTE_HEADS = 4, SPLIT_BLOCKS = SPLIT / KV_BLOCK };

// A lane's bytes of eight columns, of which four are there.
DEVICE uint4 four_columns(const uint4* at) { return lane_id() < BYTE_HEADS * 4 ? at[lane_id()] : uint4{0, 0, 0, 0}; }
