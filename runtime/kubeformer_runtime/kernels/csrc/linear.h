// y = x W^T + b with packed weights: float32, bfloat16, int8 and int4.
//
// Layout. Output columns lie in panels of 32 (two vectors of sixteen), a panel after the other; inside a panel k runs
// slowest, so one product reads it once from front to back, and a thread's panels are one stream:
//     float32   [k][32]              bfloat16  [k/2][32][2]
//     int8      for each group of 64 k: [16][32][4] bytes w + 128, then 32 scales
//     int4      for each group of 32 k: [4][32][4] bytes (k..k+3 low, k+4..k+7 high halves), then 32 scales, 32 minima
// Scales and minima are bfloat16; weights are quantised against the rounded ones, so rounding costs nothing.
// Activations of a step ("rows") are packed in blocks of 8 rows, [k-words][rows of the block]: a word is what one
// multiply-accumulate step takes (1 float, 2 bfloat16, 4 int8). int8 activations carry a scale and an offset for each 32 k:
// with 64, outliers cost SmolLM2 0.9 % of perplexity instead of 0.2.
//
// Every output is one chain of accumulations in the order of k, whatever the number of rows: the result of a row does
// not depend on which others are computed with it.
#pragma once
#include <algorithm>
#include "memory.h"
#include "simd.h"

namespace kf {

enum Type : int32_t { F32 = 0, BF16 = 1, I8 = 2, I4 = 3 };
constexpr int PANEL = 32, BLOCK_ROWS = 8, ROW_GROUP = 32;

inline int group_of(int type) { return type == I8 ? 64 : 32; }  // of quantised weights
inline int words_of(int type, int k) { return type == F32 ? k : type == BF16 ? (k + 1) / 2 : (k + 63) / 64 * 16; }

struct Linear {
    int type = F32, n = 0, k = 0, groups = 0, words = 0, panels = 0;
    size_t panel_bytes = 0;
    const uint8_t* data = nullptr;  // in the model's arena
    Memory memory, bias_memory;
    const float* bias = nullptr;

    void shape(int type_, int n_, int k_) {
        type = type_, n = n_, k = k_;
        words = words_of(type, k), groups = 4 * words / group_of(type), panels = (n + PANEL - 1) / PANEL;
        panel_bytes = type == F32 || type == BF16 ? size_t(words) * PANEL * 4
                    : size_t(groups) * (type == I8 ? 64 * PANEL + 2 * PANEL : 16 * PANEL + 4 * PANEL);
    }
    size_t bytes() const { return panel_bytes * panels; }
    void pack_panel(int panel, uint8_t* to, const void* weight, bool half) const;
};

inline void Linear::pack_panel(int panel, uint8_t* to, const void* weight, bool half) const {
    const int g = group_of(type), first = panel * PANEL;
    auto at = [&](int row, int col) -> float {  // zero outside the matrix
        if (row >= n || col >= k) return 0.0f;
        const size_t i = size_t(row) * k + col;
        return half ? widen(static_cast<const uint16_t*>(weight)[i]) : static_cast<const float*>(weight)[i];
    };
    if (type == F32) {
        float* out = reinterpret_cast<float*>(to);
        for (int c = 0; c < PANEL; c++)
            for (int w = 0; w < words; w++) out[w * PANEL + c] = at(first + c, w);
        return;
    }
    if (type == BF16) {
        uint16_t* out = reinterpret_cast<uint16_t*>(to);
        for (int c = 0; c < PANEL; c++)
            for (int w = 0; w < words; w++)
                for (int h = 0; h < 2; h++) out[(w * PANEL + c) * 2 + h] = narrow(at(first + c, 2 * w + h));
        return;
    }
    for (int group = 0; group < groups; group++) {
        const size_t weights = size_t(g) * PANEL / (type == I8 ? 1 : 2);
        uint16_t* scale = reinterpret_cast<uint16_t*>(to + weights);
        std::memset(to, 0, weights);
        for (int c = 0; c < PANEL; c++) {
            float v[64], low = 0.0f, high = 0.0f;  // 0 is always inside the range
            for (int i = 0; i < g; i++) v[i] = at(first + c, group * g + i), low = std::min(low, v[i]), high = std::max(high, v[i]);
            if (type == I4 && (group + 1) * g <= k && first + c < n) {
                low = high = v[0];
                for (int i = 1; i < g; i++) low = std::min(low, v[i]), high = std::max(high, v[i]);
            }
            if (type == I8) {
                float s = std::max(high, -low) / 127.0f;
                scale[c] = narrow(s);
                if (widen(scale[c]) < s) scale[c]++;
                s = widen(scale[c]);
                for (int i = 0; i < g; i++) {
                    int q = s > 0.0f ? int(std::nearbyint(v[i] / s)) : 0;
                    to[((i / 4) * PANEL + c) * 4 + i % 4] = uint8_t(std::clamp(q, -127, 127) + 128);
                }
            } else {
                scale[PANEL + c] = narrow(low);
                const float m = widen(scale[PANEL + c]);
                scale[c] = narrow((high - m) / 15.0f);
                const float s = widen(scale[c]);
                for (int i = 0; i < g; i++) {
                    int q = std::clamp(s > 0.0f ? int(std::nearbyint((v[i] - m) / s)) : 0, 0, 15);
                    to[((i / 8) * PANEL + c) * 4 + i % 4] |= uint8_t(i % 8 < 4 ? q : q << 4);
                }
            }
        }
        to += weights + (type == I8 ? 2 : 4) * PANEL;
    }
}

// Packed activations of up to `capacity` rows; see the layout above.
struct Rows {
    Memory memory;
    int type = F32, k = 0, words = 0, groups = 0, rows = 0;
    uint32_t* data = nullptr;
    float* scale = nullptr;  // int8: of a row's group
    int32_t* offset = nullptr;  // int8: -128 times the sum of a row's group, in quantised units: what w + 128 adds too much

    static size_t bytes(int type, int k, int rows) {
        rows = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS * BLOCK_ROWS;
        return size_t(rows) * words_of(type, k) * 4 + 64 + (type >= I8 ? size_t(rows) * (words_of(type, k) / 8) * 8 : 0);
    }
    void attach(uint8_t* at, int type_, int k_, int rows_) {
        type = type_, k = k_, rows = rows_, words = words_of(type, k), groups = 4 * words / ROW_GROUP;
        data = reinterpret_cast<uint32_t*>(at);
        scale = reinterpret_cast<float*>(at + size_t(rows) * words * 4);
        offset = reinterpret_cast<int32_t*>(scale + size_t(rows) * groups);
    }
    int block_rows(int block) const { return std::min(BLOCK_ROWS, rows - block * BLOCK_ROWS); }

    // Writes one row of k floats.
    void put(int row, const float* x) {
        const int block = row / BLOCK_ROWS, m = block_rows(block), r = row % BLOCK_ROWS;
        uint32_t* out = data + size_t(block) * BLOCK_ROWS * words + r;
        if (type == F32) {
            for (int w = 0; w < words; w++) std::memcpy(out + size_t(w) * m, x + w, 4);
        } else if (type == BF16) {
            int i = 0;
            for (; i + LANES <= k; i += LANES) {
                uint16_t h[LANES];
                narrow_lanes(h, load(x + i));
                for (int j = 0; j < 8; j++) std::memcpy(out + size_t(i / 2 + j) * m, h + 2 * j, 4);
            }
            for (; i < k; i += 2) out[size_t(i / 2) * m] = narrow(x[i]) | uint32_t(i + 1 < k ? narrow(x[i + 1]) : 0) << 16;
        } else {
            constexpr int g = ROW_GROUP;
            for (int group = 0; group < groups; group++) {
                float part[g] = {};
                if (group * g < k) std::memcpy(part, x + group * g, size_t(std::min(g, k - group * g)) * 4);
                vf peak = splat(0.0f);
                for (int i = 0; i < g; i += LANES) { vf v = load(part + i); peak = max(peak, max(v, splat(0.0f) - v)); }
                const float s = highest(peak) / 127.0f, inverse = s > 0.0f ? 1.0f / s : 0.0f;
                vi total = splat(0);
                for (int i = 0; i < g; i += LANES) {
                    const vi q = to_int(load(part + i) * splat(inverse));
                    const vb bytes = __builtin_convertvector(q, vb);
                    total += q;
                    for (int j = 0; j < LANES; j += 4)
                        std::memcpy(out + size_t((group * g + i + j) / 4) * m, reinterpret_cast<const char*>(&bytes) + j, 4);
                }
                const size_t at = (size_t(block) * BLOCK_ROWS * groups) + size_t(group) * m + r;
                scale[at] = s, offset[at] = -128 * sum(total);
            }
        }
    }
};

// Micro-kernels: M rows of a block against P neighbouring panels; out[row][P * 32].
constexpr int AHEAD = 1536;  // bytes that a weight is prefetched before its use

// What a kernel prefetches while it reads 128 bytes of a panel: the lines at `at` and `at + second`, then `step` further.
// One block of rows: its own panel, a little ahead. More of them read the panel again from the L2 cache, so the first
// two fetch half of the next panel each, and memory never idles.
struct Ahead {
    const uint8_t* at;
    int second, step;
    static Ahead of(const Linear& L, int panel, int wide, int block, int blocks) {
        const uint8_t* start = L.data + size_t(panel) * L.panel_bytes;
        if (blocks == 1) return {start + AHEAD, 64, 128};
        if (block > 1) return {start, 0, 0};
        return {start + wide * L.panel_bytes + block * (L.panel_bytes / 2), 0, 64};
    }
    void next(int p, size_t panel_bytes) const {
        prefetch(at + p * panel_bytes);
        prefetch(at + p * panel_bytes + second);
    }
};

template <int M, int P> struct Kernel {
    static constexpr int V = 2 * P;

    template <class Step> KF_INLINE void dense(const Linear& L, int panel, const uint32_t* a, Ahead ahead, float* out, Step step) {
        vf acc[M][V];
        for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) acc[r][v] = splat(0.0f);
        const uint8_t* w[P];
        for (int p = 0; p < P; p++) w[p] = L.data + (panel + p) * L.panel_bytes;
        for (int i = 0; i < L.words; i++, a += M) {
            vi b[V];
            for (int p = 0; p < P; p++) {
                ahead.next(p, L.panel_bytes);
                b[2 * p] = load_words(w[p]), b[2 * p + 1] = load_words(w[p] + 64);
                w[p] += 4 * PANEL;
            }
            ahead.at += ahead.step;
            for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) acc[r][v] = step(acc[r][v], b[v], a[r]);
        }
        for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) store(out + r * P * PANEL + v * LANES, acc[r][v]);
    }
    static void f32(const Linear& L, int panel, const uint32_t* a, Ahead ahead, float* out) {
        dense(L, panel, a, ahead, out, [](vf acc, vi w, uint32_t x) { float f; std::memcpy(&f, &x, 4); return fma((vf)w, splat(f), acc); });
    }
    static void bf16(const Linear& L, int panel, const uint32_t* a, Ahead ahead, float* out) {
        dense(L, panel, a, ahead, out, [](vf acc, vi w, uint32_t x) { return dot2(acc, w, x); });
    }

    template <int TYPE> static void quantised(const Linear& L, int panel, const uint32_t* a, const float* scale, const int32_t* offsets, Ahead ahead, float* out) {
        constexpr int HALVES = TYPE == I8 ? 2 : 1, STEPS = TYPE == I8 ? 8 : 4, TAIL = (TYPE == I8 ? 2 : 4) * PANEL;
        vf acc[M][V];
        for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) acc[r][v] = splat(0.0f);
        const uint8_t* w[P];
        for (int p = 0; p < P; p++) w[p] = L.data + (panel + p) * L.panel_bytes;
        for (int group = 0; group < L.groups; group++) {
            for (int half = 0; half < HALVES; half++, scale += M, offsets += M) {
                vi part[M][V];
                for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) part[r][v] = splat(TYPE == I8 ? offsets[r] : 0);
                for (int i = 0; i < STEPS; i++) {
                    vi b[V];
                    for (int p = 0; p < P; p++) {
                        ahead.next(p, L.panel_bytes);
                        b[2 * p] = load_words(w[p]), b[2 * p + 1] = load_words(w[p] + 64);
                        w[p] += 4 * PANEL;
                    }
                    ahead.at += ahead.step;
                    if (TYPE == I8) {
                        for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) part[r][v] = dot4(part[r][v], b[v], int32_t(a[r]));
                        a += M;
                    } else {
                        for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) {
                            part[r][v] = dot4(part[r][v], b[v] & 0x0f0f0f0f, int32_t(a[r]));
                            part[r][v] = dot4(part[r][v], (vi)((vu)b[v] >> 4) & 0x0f0f0f0f, int32_t(a[M + r]));
                        }
                        a += 2 * M;
                    }
                }
                for (int p = 0; p < P; p++) for (int h = 0; h < 2; h++) {
                    const int v = 2 * p + h;
                    const uint16_t* tail = reinterpret_cast<const uint16_t*>(w[p] + (HALVES - 1 - half) * STEPS * 4 * PANEL) + h * LANES;
                    const vf s = widen_lanes(tail);
                    for (int r = 0; r < M; r++) acc[r][v] = fma(to_float(part[r][v]) * s, splat(scale[r]), acc[r][v]);
                    if (TYPE == I4) {
                        const vf low = widen_lanes(tail + PANEL);
                        for (int r = 0; r < M; r++) acc[r][v] = fma(low, splat(scale[r] * float(offsets[r]) * (-1.0f / 128)), acc[r][v]);
                    }
                }
            }
            for (int p = 0; p < P; p++) w[p] += TAIL;
        }
        for (int r = 0; r < M; r++) for (int v = 0; v < V; v++) store(out + r * P * PANEL + v * LANES, acc[r][v]);
    }
    static void run(const Linear& L, int panel, const Rows& x, int block, Ahead ahead, float* out) {
        const uint32_t* a = x.data + size_t(block) * BLOCK_ROWS * x.words;
        const float* scale = x.scale + size_t(block) * BLOCK_ROWS * x.groups;
        const int32_t* offsets = x.offset + size_t(block) * BLOCK_ROWS * x.groups;
        switch (L.type) {
            case F32: return f32(L, panel, a, ahead, out);
            case BF16: return bf16(L, panel, a, ahead, out);
            case I8: return quantised<I8>(L, panel, a, scale, offsets, ahead, out);
            default: return quantised<I4>(L, panel, a, scale, offsets, ahead, out);
        }
    }
};

template <int P> inline void run_kernel(const Linear& L, int panel, const Rows& x, int block, Ahead ahead, float* out) {
    switch (x.block_rows(block)) {
        case 1: return Kernel<1, P>::run(L, panel, x, block, ahead, out);
        case 2: return Kernel<2, P>::run(L, panel, x, block, ahead, out);
        default: break;
    }
    if constexpr (P == 1) switch (x.block_rows(block)) {
        case 3: return Kernel<3, 1>::run(L, panel, x, block, ahead, out);
        case 4: return Kernel<4, 1>::run(L, panel, x, block, ahead, out);
        case 5: return Kernel<5, 1>::run(L, panel, x, block, ahead, out);
        case 6: return Kernel<6, 1>::run(L, panel, x, block, ahead, out);
        case 7: return Kernel<7, 1>::run(L, panel, x, block, ahead, out);
        case 8: return Kernel<8, 1>::run(L, panel, x, block, ahead, out);
    }
}

// Panels [begin, end) for all rows. `emit(row, panel, values)` gets the 32 results of a row and a panel.
template <class Emit> inline void multiply(const Linear& L, const Rows& x, int begin, int end, Emit emit) {
    float out[BLOCK_ROWS * PANEL * 2] __attribute__((aligned(64)));
    const int blocks = (x.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int panel = begin; panel < end;) {
        const int wide = x.rows <= 2 && panel + 1 < end ? 2 : 1;
        for (int block = 0; block < blocks; block++) {
            const Ahead ahead = Ahead::of(L, panel, wide, block, blocks);
            if (wide == 2) run_kernel<2>(L, panel, x, block, ahead, out);
            else run_kernel<1>(L, panel, x, block, ahead, out);
            for (int r = 0; r < x.block_rows(block); r++)
                for (int p = 0; p < wide; p++) emit(block * BLOCK_ROWS + r, panel + p, out + (r * wide + p) * PANEL);
        }
        panel += wide;
    }
}

}  // namespace kf
