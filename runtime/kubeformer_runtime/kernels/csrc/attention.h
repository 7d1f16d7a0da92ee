// Attention of one token over its sequence's blocks of the paged cache, for the heads of one key-value head.
//
// A block of the cache holds 16 tokens of one layer; for each key-value head first the keys, then the values, W being
// the head's width, rounded up to 16:
//     float32   keys [W][16 tokens]           values [16 tokens][W]
//     bfloat16  keys [W/2][16 tokens][2]      values [16/2 token pairs][W][2]
// so that sixteen lanes are sixteen tokens when scores are computed, and sixteen channels when values are summed.
// Decode and prefill are the same routine: a token sees the first `length` tokens of its table. Scores go to scratch
// memory first (two passes, no rescaling), so the order of all sums is given by the positions alone.
#pragma once
#include "linear.h"

namespace kf {

constexpr int BLOCK = 16;  // tokens of a block of the cache

struct AttentionShape {
    int heads, kv_heads, width, padded;  // heads a key-value head serves: heads / kv_heads
    bool half;                           // bfloat16 cache
    float scale;
    size_t head_bytes() const { return size_t(2) * BLOCK * padded * (half ? 2 : 4); }
    size_t block_bytes() const { return head_bytes() * kv_heads; }
};

// Stores key and value (width floats each) of the token in `slot` for one key-value head.
inline void write_cache(const AttentionShape& s, uint8_t* cache, int64_t slot, int kv_head, const float* key, const float* value) {
    uint8_t* at = cache + size_t(slot / BLOCK) * s.block_bytes() + size_t(kv_head) * s.head_bytes();
    const int t = int(slot % BLOCK);
    if (s.half) {
        uint16_t *k = reinterpret_cast<uint16_t*>(at), *v = k + BLOCK * s.padded;
        for (int c = 0; c < s.width; c++) k[(c / 2 * BLOCK + t) * 2 + c % 2] = narrow(key[c]);
        for (int c = 0; c < s.width; c++) v[(t / 2 * s.padded + c) * 2 + t % 2] = narrow(value[c]);
    } else {
        float *k = reinterpret_cast<float*>(at), *v = k + BLOCK * s.padded;
        for (int c = 0; c < s.width; c++) k[c * BLOCK + t] = key[c];
        for (int c = 0; c < s.width; c++) v[t * s.padded + c] = value[c];
    }
}

// Scores of `H` heads with the 16 tokens of one block. q: [H][padded] floats, or padded/2 pairs of bfloat16.
template <int H> KF_INLINE void block_scores(const AttentionShape& s, const uint8_t* at, const uint32_t* q, vf* score) {
    const int words = s.half ? s.padded / 2 : s.padded;
    vf even[H], odd[H];
    for (int h = 0; h < H; h++) even[h] = odd[h] = splat(0.0f);
    for (int w = 0; w < words; w += 2) {  // two chains a head hide the latency of an accumulation
        const vi k0 = load_words(at + size_t(w) * 64), k1 = load_words(at + size_t(w + 1) * 64);
        for (int h = 0; h < H; h++) {
            const uint32_t *x = q + h * words + w;
            if (s.half) {
                even[h] = dot2(even[h], k0, x[0]), odd[h] = dot2(odd[h], k1, x[1]);
            } else {
                float f[2];
                std::memcpy(f, x, 8);
                even[h] = fma((vf)k0, splat(f[0]), even[h]), odd[h] = fma((vf)k1, splat(f[1]), odd[h]);
            }
        }
    }
    for (int h = 0; h < H; h++) score[h] = even[h] + odd[h];
}

// Adds the values of one block, weighted, to acc[H][V]: channels [16 * first, 16 * (first + V)).
template <int H, int V> KF_INLINE void block_values(const AttentionShape& s, const uint8_t* at, int first, int tokens, const float* p, int stride, vf (*acc)[V]) {
    if (s.half) {
        for (int t = 0; t < tokens; t += 2) {
            const bool lone = t + 1 == tokens;  // the second of the pair is no token yet
            vi v[V];
            for (int j = 0; j < V; j++) {
                v[j] = load_words(at + (size_t(t / 2) * s.padded + (first + j) * LANES) * 4);
                if (lone) v[j] &= 0xffff;
            }
            for (int h = 0; h < H; h++) {
                uint32_t pair;
                std::memcpy(&pair, reinterpret_cast<const uint16_t*>(p + size_t(h) * stride) + t, 4);
                if (lone) pair &= 0xffffu;
                for (int j = 0; j < V; j++) acc[h][j] = dot2(acc[h][j], v[j], pair);
            }
        }
    } else {
        for (int t = 0; t < tokens; t++)
            for (int j = 0; j < V; j++) {
                const vf v = load(reinterpret_cast<const float*>(at) + size_t(t) * s.padded + (first + j) * LANES);
                for (int h = 0; h < H; h++) acc[h][j] = fma(v, splat(p[size_t(h) * stride + t]), acc[h][j]);
            }
    }
}

// Blocks lie anywhere, so the CPU cannot guess which memory comes next.
inline void fetch(const uint8_t* at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) prefetch(at + i);
}

// `H` heads of one key-value head over tokens [begin, length). `probability` has room for H * stride floats.
template <int H> void attend_heads(const AttentionShape& s, const uint8_t* cache, const int32_t* table, int kv_head, int begin, int length,
                                   const uint32_t* q, float* probability, int stride, float* out) {
    const int from = begin / BLOCK, to = (length + BLOCK - 1) / BLOCK;
    const size_t keys = size_t(kv_head) * s.head_bytes(), values = keys + s.head_bytes() / 2;
    vf peak[H], total[H];
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int h = 0; h < H; h++) peak[h] = splat(-INFINITY), total[h] = splat(0.0f);
    for (int b = from; b < to; b++) {
        vf score[H];
        if (b + 1 < to) fetch(cache + size_t(table[b + 1]) * s.block_bytes() + keys, s.head_bytes() / 2);
        block_scores<H>(s, cache + size_t(table[b]) * s.block_bytes() + keys, q, score);
        const vi position = lane + b * BLOCK;
        const vi seen = (position >= begin) & (position < length);
        for (int h = 0; h < H; h++) {
            const vf x = seen ? score[h] * splat(s.scale) : splat(-INFINITY);
            peak[h] = max(peak[h], x);
            store(probability + size_t(h) * stride + (b - from) * BLOCK, x);
        }
    }
    for (int h = 0; h < H; h++) {
        const vf top = splat(highest(peak[h]));
        float* p = probability + size_t(h) * stride;
        for (int b = 0; b < to - from; b++) {
            const vf x = load(p + b * BLOCK), e = x == splat(-INFINITY) ? splat(0.0f) : exp(x - top);
            total[h] += e;
            if (s.half) narrow_lanes(reinterpret_cast<uint16_t*>(p) + b * BLOCK, e);  // in place: writes trail reads
            else store(p + b * BLOCK, e);
        }
    }
    float inverse[H];
    for (int h = 0; h < H; h++) inverse[h] = 1.0f / sum(total[h]);
    const int vectors = s.padded / LANES;
    auto channels = [&](auto wide, int first) {
        constexpr int V = decltype(wide)::value;
        vf acc[H][V];
        for (int h = 0; h < H; h++) for (int j = 0; j < V; j++) acc[h][j] = splat(0.0f);
        for (int b = from; b < to; b++) {
            const float* p = s.half ? reinterpret_cast<const float*>(reinterpret_cast<const uint16_t*>(probability) + (b - from) * BLOCK)
                                    : probability + (b - from) * BLOCK;
            if (first == 0 && b + 1 < to) fetch(cache + size_t(table[b + 1]) * s.block_bytes() + values, s.head_bytes() / 2);
            block_values<H, V>(s, cache + size_t(table[b]) * s.block_bytes() + values, first, std::min(BLOCK, length - b * BLOCK), p, stride, acc);
        }
        for (int h = 0; h < H; h++) for (int j = 0; j < V; j++) {
            float y[LANES];
            store(y, acc[h][j] * splat(inverse[h]));
            const int at = (first + j) * LANES, n = std::min(LANES, s.width - at);
            if (n > 0) std::memcpy(out + h * s.width + at, y, size_t(n) * 4);
        }
    };
    int first = 0;
    for (; first + 4 <= vectors; first += 4) channels(std::integral_constant<int, 4>(), first);
    for (; first < vectors; first++) channels(std::integral_constant<int, 1>(), first);
}

// All heads of one key-value head. q: [heads / kv_heads][padded], in the cache's type; out: [heads / kv_heads][width].
inline void attend(const AttentionShape& s, const uint8_t* cache, const int32_t* table, int kv_head, int begin, int length,
                   const uint32_t* q, float* probability, int stride, float* out) {
    const int words = s.half ? s.padded / 2 : s.padded;
    for (int left = s.heads / s.kv_heads; left > 0;) {
        const int h = std::min(left, 4);
        switch (h) {
            case 1: attend_heads<1>(s, cache, table, kv_head, begin, length, q, probability, stride, out); break;
            case 2: attend_heads<2>(s, cache, table, kv_head, begin, length, q, probability, stride, out); break;
            case 3: attend_heads<3>(s, cache, table, kv_head, begin, length, q, probability, stride, out); break;
            default: attend_heads<4>(s, cache, table, kv_head, begin, length, q, probability, stride, out); break;
        }
        q += h * words, out += h * s.width, left -= h;
    }
}

}  // namespace kf
