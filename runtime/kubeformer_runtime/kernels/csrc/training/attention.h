// Causal attention, forward and backward, over rows of q, k and v as one matrix product leaves them.
//
// A token sees itself and what is before it, back to `first` (the start of its document, where several share a row).
// Everything is counted in units of 32 bits: one float32, or two neighbouring bfloat16 that one instruction multiplies
// and adds (dot2). A is row-major in units, B is (units, columns), so one product serves both types.
// T tokens of a row, W width of a head, H heads that share K key-value heads. W is a multiple of 32.
#pragma once
#include <vector>
#include "parallel.h"

namespace kf {

template <class E> struct Unit;
template <> struct Unit<float> {
    static constexpr int pair = 1;
    KF_INLINE vf step(vf acc, vi b, uint32_t a) { float x; std::memcpy(&x, &a, 4); return fma((vf)b, splat(x), acc); }
};
template <> struct Unit<half_t> {
    static constexpr int pair = 2;
    KF_INLINE vf step(vf acc, vi b, uint32_t a) { return dot2(acc, b, a); }
};

// c (R, C * 16) = or += a (R, units) b (units, C * 16).
template <class E, int R, int C>
static inline void tile(const uint32_t* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t units, bool add) {
    vf acc[R][C];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) acc[r][j] = add ? load(c + r * ldc + j * LANES) : splat(0.0f);
    for (int64_t u = 0; u < units; u++) {
        vi row[C];
        for (int j = 0; j < C; j++) row[j] = load_words(b + u * ldb + j * LANES);
        for (int r = 0; r < R; r++)
            for (int j = 0; j < C; j++) acc[r][j] = Unit<E>::step(acc[r][j], row[j], a[r * lda + u]);
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) store(c + r * ldc + j * LANES, acc[r][j]);
}

template <class E, int C>
static inline void panel(const uint32_t* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t units, bool add) {
    int64_t r = 0;
    for (; r + 6 <= rows; r += 6) tile<E, 6, C>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, units, add);
    for (; r + 2 <= rows; r += 2) tile<E, 2, C>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, units, add);
    for (; r < rows; r++) tile<E, 1, C>(a + r * lda, lda, b, ldb, c + r * ldc, ldc, units, add);
}

// c (rows, columns) = or += a (rows, units) b (units, columns); columns a multiple of 32.
template <class E>
static void multiply(const void* a, int64_t lda, const uint32_t* b, int64_t ldb, float* c, int64_t ldc, int64_t rows, int64_t columns, int64_t units, bool add) {
    const uint32_t* a_units = static_cast<const uint32_t*>(a);
    int64_t column = 0;
    for (; column + 64 <= columns; column += 64) panel<E, 4>(a_units, lda, b + column, ldb, c + column, ldc, rows, units, add);
    for (; column < columns; column += 32) panel<E, 2>(a_units, lda, b + column, ldb, c + column, ldc, rows, units, add);
}

// What one thread needs; sized once for T and W.
template <class E> struct Scratch {
    static constexpr int pair = Unit<E>::pair;
    int64_t T, W;
    std::vector<uint32_t> k_wide, v_wide, q_wide, o_wide, k_tall, v_tall, q_tall, o_tall, turned;
    std::vector<E> p, ds;
    std::vector<uint32_t> ds_tall;
    std::vector<float> scores, dp, dq, dk, dv, out, delta;
    Scratch(int64_t tokens, int64_t width, int64_t block) : T((tokens + 63) / 64 * 64), W(width) {
        for (auto* x : {&k_wide, &v_wide, &q_wide, &o_wide, &k_tall, &v_tall, &q_tall, &o_tall, &turned}) x->assign(T * W / pair, 0);
        p.assign(block * T, E(0)), ds.assign(block * T, E(0)), ds_tall.assign(block * T / pair + T, 0);
        scores.resize(block * T), dp.resize(block * T), out.resize(block * W), delta.resize(T);
        dq.resize(W * T), dk.resize(T * W), dv.resize(T * W);
    }
};

// (T, W) rows of numbers, `stride` apart, to units (W / pair, T): column t is token t.
template <class E> static void widen_units(const E* rows, int64_t stride, uint32_t* out, int64_t tokens, int64_t T, int64_t W) {
    const int64_t units = W / Unit<E>::pair;
    for (int64_t begin = 0; begin < T; begin += LANES)
        for (int64_t u = 0; u < units; u++)
            for (int64_t t = begin; t < begin + LANES; t++) {
                uint32_t word = 0;
                if (t < tokens) std::memcpy(&word, rows + t * stride + u * Unit<E>::pair, 4);
                out[u * T + t] = word;
            }
}

// (tokens, W) rows to units (tokens / pair, W), rows `ld` apart: tokens that are neighbours share a unit.
static void stack_units(const float* rows, int64_t stride, uint32_t* out, int64_t ld, int64_t tokens, int64_t W) {
    for (int64_t t = 0; t < tokens; t++) std::memcpy(out + t * ld, rows + t * stride, W * 4);
}
static void stack_units(const half_t* rows, int64_t stride, uint32_t* out, int64_t ld, int64_t tokens, int64_t W) {
    for (int64_t t = 0; t < tokens; t += 2) {
        const half_t *low = rows + t * stride, *high = low + stride;
        uint32_t* to = out + t / 2 * ld;
        if (t + 1 < tokens) for (int64_t w = 0; w < W; w++) to[w] = low[w] | uint32_t(high[w]) << 16;
        else for (int64_t w = 0; w < W; w++) to[w] = low[w];
    }
}

// (T, W) rows to numbers (W, T).
template <class E> static void turn(const E* rows, int64_t stride, uint32_t* out, int64_t tokens, int64_t T, int64_t W) {
    E* numbers = reinterpret_cast<E*>(out);
    for (int64_t begin = 0; begin < tokens; begin += LANES)
        for (int64_t w = 0; w < W; w++)
            for (int64_t t = begin; t < std::min(begin + LANES, tokens); t++) numbers[w * T + t] = rows[t * stride + w];
}

struct Shape {
    int64_t B, T, H, K, W, block;
    int64_t stride() const { return (H + 2 * K) * W; }
};

constexpr float FAR = -1e30f;
KF_INLINE vi steps_from(int64_t start) {
    vi v;
    for (int i = 0; i < LANES; i++) v[i] = int32_t(start) + i;
    return v;
}

// qkv (B * T, (H + 2 K) W) -> out (B * T, H W), and the log of each softmax's denominator, lse (B, H, T).
template <class E> void attention_forward(const E* qkv, const int32_t* first, E* out, float* lse, Shape s) {
    const int64_t group = s.H / s.K, stride = s.stride();
    const float scale = 1.0f / std::sqrt(float(s.W));
    std::vector<Scratch<E>*> scratch(omp_get_max_threads(), nullptr);
    over_items(s.B * s.K, [&](int64_t item, int thread) {
        if (!scratch[thread]) scratch[thread] = new Scratch<E>(s.T, s.W, s.block);
        Scratch<E>& x = *scratch[thread];
        const int64_t b = item / s.K, k = item % s.K, T = x.T, W = s.W, pair = Unit<E>::pair;
        const E* rows = qkv + b * s.T * stride;
        widen_units(rows + (s.H + k) * W, stride, x.k_wide.data(), s.T, T, W);
        stack_units(rows + (s.H + s.K + k) * W, stride, x.v_tall.data(), W, s.T, W);
        const int32_t* since = first ? first + b * s.T : nullptr;
        for (int64_t h = k * group; h < (k + 1) * group; h++)
            for (int64_t q0 = 0; q0 < s.T; q0 += s.block) {
                const int64_t count = std::min(s.block, s.T - q0), low = since ? since[q0] / 64 * 64 : 0;
                const int64_t columns = (q0 + count + 63) / 64 * 64 - low;
                multiply<E>(rows + q0 * stride + h * W, stride / pair, x.k_wide.data() + low, T, x.scores.data(), T, count, columns, W / pair, false);
                for (int64_t i = 0; i < count; i++) {
                    float* row = x.scores.data() + i * T;
                    const vi last = splat(int32_t(q0 + i)), begin = splat(since ? since[q0 + i] : 0);
                    vf high = splat(FAR);
                    for (int64_t j = 0; j < columns; j += LANES) {
                        vi t = steps_from(low + j);
                        vf v = load(row + j) * splat(scale);
                        v = ((t <= last) & (t >= begin)) ? v : splat(FAR);
                        store(row + j, v);
                        high = max(high, v);
                    }
                    float top = highest(high);
                    vf sums = splat(0.0f);
                    E* p = x.p.data() + i * T;
                    for (int64_t j = 0; j < columns; j += LANES) {
                        vf v = load(row + j), e = exp(v - splat(top));
                        e = v > splat(FAR) ? e : splat(0.0f);
                        sums = sums + e;
                        put(p + j, e);
                    }
                    float total = sum(sums);
                    x.delta[i] = 1.0f / total;
                    lse[(b * s.H + h) * s.T + q0 + i] = top + std::log(total);
                }
                multiply<E>(x.p.data(), T / pair, x.v_tall.data() + low / pair * W, W, x.out.data(), W, count, W, columns / pair, false);
                for (int64_t i = 0; i < count; i++) {
                    E* o = out + (b * s.T + q0 + i) * s.H * W + h * W;
                    for (int64_t w = 0; w < W; w += LANES) put(o + w, load(x.out.data() + i * W + w) * splat(x.delta[i]));
                }
            }
    });
    for (auto* each : scratch) delete each;
}

// Gradients dqkv (same layout as qkv) from dout (same as out).
template <class E> void attention_backward(const E* qkv, const int32_t* first, const E* out, const float* lse, const E* dout, E* dqkv, Shape s) {
    const int64_t group = s.H / s.K, stride = s.stride(), across = s.H * s.W;
    const float scale = 1.0f / std::sqrt(float(s.W));
    std::vector<Scratch<E>*> scratch(omp_get_max_threads(), nullptr);
    over_items(s.B * s.K, [&](int64_t item, int thread) {
        if (!scratch[thread]) scratch[thread] = new Scratch<E>(s.T, s.W, s.block);
        Scratch<E>& x = *scratch[thread];
        const int64_t b = item / s.K, k = item % s.K, T = x.T, W = s.W, pair = Unit<E>::pair;
        const E* rows = qkv + b * s.T * stride;
        const E *key = rows + (s.H + k) * W, *value = rows + (s.H + s.K + k) * W;
        turn(key, stride, x.turned.data(), s.T, T, W);
        const int32_t* since = first ? first + b * s.T : nullptr;
        for (int64_t h = k * group; h < (k + 1) * group; h++) {
            const E *query = rows + h * W, *d = dout + b * s.T * across + h * W, *o = out + b * s.T * across + h * W;
            const float* log_sum = lse + (b * s.H + h) * s.T;
            widen_units(query, stride, x.q_wide.data(), s.T, T, W);
            widen_units(d, across, x.o_wide.data(), s.T, T, W);
            stack_units(query, stride, x.q_tall.data(), W, s.T, W);
            stack_units(d, across, x.o_tall.data(), W, s.T, W);
            for (int64_t t = 0; t < T; t++) {
                vf dot = splat(0.0f);
                if (t < s.T) for (int64_t w = 0; w < W; w += LANES) dot = fma(get(d + t * across + w), get(o + t * across + w), dot);
                x.delta[t] = sum(dot);
            }
            std::fill(x.dq.begin(), x.dq.end(), 0.0f);
            for (int64_t k0 = 0; k0 < s.T; k0 += s.block) {
                const int64_t count = std::min(s.block, s.T - k0), low = k0 / 64 * 64;
                int64_t end = T;  // the last token that looks at any of these keys
                if (since) for (end = k0 + count; end < s.T && since[end] < k0 + count; end++) {}
                const int64_t columns = (end + 63) / 64 * 64 - low;
                multiply<E>(key + k0 * stride, stride / pair, x.q_wide.data() + low, T, x.scores.data(), T, count, columns, W / pair, false);
                multiply<E>(value + k0 * stride, stride / pair, x.o_wide.data() + low, T, x.dp.data(), T, count, columns, W / pair, false);
                for (int64_t i = 0; i < count; i++) {
                    const vi mine = splat(int32_t(k0 + i)), most = splat(int32_t(s.T));
                    float *row = x.scores.data() + i * T, *dp = x.dp.data() + i * T;
                    E *p = x.p.data() + i * T, *ds = x.ds.data() + i * T;
                    for (int64_t j = 0; j < columns; j += LANES) {
                        const int64_t t = low + j;
                        vi q = steps_from(t), seen = (q >= mine) & (q < most);
                        if (since && t < s.T) {
                            vi begin = splat(0);
                            for (int lane = 0; lane < LANES && t + lane < s.T; lane++) begin[lane] = since[t + lane];
                            seen = seen & (mine >= begin);
                        }
                        vf sums = splat(0.0f);
                        if (t + LANES <= s.T) sums = load(log_sum + t);
                        else for (int lane = 0; t + lane < s.T; lane++) sums[lane] = log_sum[t + lane];
                        vf v = load(row + j) * splat(scale) - sums;
                        vf e = exp(v < splat(80.0f) ? v : splat(80.0f));
                        e = seen ? e : splat(0.0f);
                        put(p + j, e);
                        vf g = e * (load(dp + j) - load(x.delta.data() + t)) * splat(scale);
                        put(ds + j, g);
                    }
                }
                if (count % pair) std::fill_n(x.ds.data() + count * T, columns, E(0));
                stack_units(x.ds.data(), T, x.ds_tall.data(), T, (count + pair - 1) / pair * pair, columns);
                const bool add = h > k * group;
                multiply<E>(x.p.data(), T / pair, x.o_tall.data() + low / pair * W, W, x.dv.data() + k0 * W, W, count, W, columns / pair, add);
                multiply<E>(x.ds.data(), T / pair, x.q_tall.data() + low / pair * W, W, x.dk.data() + k0 * W, W, count, W, columns / pair, add);
                multiply<E>(x.turned.data() + k0 / pair, T / pair, x.ds_tall.data(), T, x.dq.data() + low, T, W, columns, (count + pair - 1) / pair, true);
            }
            for (int64_t t = 0; t < s.T; t++) {
                E* to = dqkv + (b * s.T + t) * stride + h * W;
                for (int64_t w = 0; w < W; w++) put1(to + w, x.dq[w * T + t]);
            }
        }
        for (int64_t t = 0; t < s.T; t++) {
            E *dk = dqkv + (b * s.T + t) * stride + (s.H + k) * W, *dv = dk + s.K * W;
            for (int64_t w = 0; w < W; w += LANES) put(dk + w, load(x.dk.data() + t * W + w)), put(dv + w, load(x.dv.data() + t * W + w));
        }
    });
    for (auto* each : scratch) delete each;
}

}  // namespace kf
