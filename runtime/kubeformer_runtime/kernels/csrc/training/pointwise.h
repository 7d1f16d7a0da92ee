// What lies between the matrix products of a decoder: norms with the residual stream, rotation, SwiGLU, cross-entropy,
// the embedding's gradient, AdamW; each forward and backward in one pass over memory.
//
// N tokens, D width of the model, F width of the MLP, V vocabulary, W width of a head. The residual stream is float32,
// T is what matrices are multiplied in. D, F, W/2 and V are multiples of 16.
#pragma once
#include <cmath>
#include <vector>
#include "parallel.h"

namespace kf {

// x + y -> out (y may be null, out may be x); norm(out) * weight -> h; 1 / root mean square -> scale_N.
template <class T>
void norm_forward(const float* x, const T* y, float* out, const float* weight, T* h, float* scale_N, int64_t N, int64_t D, float epsilon) {
    over_rows(N, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; n++) {
            const float* xn = x + n * D;
            float* on = out + n * D;
            vf squares = splat(0.0f);
            for (int64_t d = 0; d < D; d += LANES) {
                vf v = load(xn + d);
                if (y) v = v + get(y + n * D + d);
                store(on + d, v);
                squares = fma(v, v, squares);
            }
            float scale = 1.0f / std::sqrt(sum(squares) / float(D) + epsilon);
            scale_N[n] = scale;
            for (int64_t d = 0; d < D; d += LANES) put(h + n * D + d, load(on + d) * splat(scale) * load(weight + d));
        }
    });
}

// Adds the gradient through the norm to dx; copies dx as T into narrow (where not null); adds to dweight.
template <class T>
void norm_backward(const T* dh, const float* x, const float* weight, const float* scale_N, float* dx, T* narrow_dx, float* dweight, int64_t N, int64_t D, float factor) {
    std::vector<float> partial(size_t(omp_get_max_threads()) * D, 0.0f);
    over_rows(N, [&](int64_t begin, int64_t end, int thread) {
        float* mine = partial.data() + size_t(thread) * D;
        for (int64_t n = begin; n < end; n++) {
            const float* xn = x + n * D;
            float* dn = dx + n * D;
            vf scale = splat(scale_N[n]), dots = splat(0.0f);
            for (int64_t d = 0; d < D; d += LANES) {
                vf g = get(dh + n * D + d) * splat(factor), turned = load(xn + d) * scale;
                store(mine + d, fma(g, turned, load(mine + d)));
                dots = fma(g * load(weight + d), turned, dots);
            }
            vf mean = splat(sum(dots) / float(D));
            for (int64_t d = 0; d < D; d += LANES) {
                vf g = get(dh + n * D + d) * splat(factor) * load(weight + d);
                vf v = load(dn + d) + scale * (g - load(xn + d) * scale * mean);
                store(dn + d, v);
                if (narrow_dx) put(narrow_dx + n * D + d, v);
            }
        }
    });
    for (int thread = 0; thread < omp_get_max_threads(); thread++)
        for (int64_t d = 0; d < D; d++) dweight[d] += partial[size_t(thread) * D + d];
}

// Turns channel i of each of the first `heads` heads of a row together with i + W/2, by the token's position, in
// place; `sign` -1 turns back. cosine and sine: (T, W/2).
template <class T>
void rotate(T* rows, int64_t stride, const float* cosine, const float* sine, int64_t N, int64_t tokens, int64_t heads, int64_t W, float sign) {
    over_rows(N, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; n++) {
            const float *c = cosine + (n % tokens) * (W / 2), *s = sine + (n % tokens) * (W / 2);
            for (int64_t head = 0; head < heads; head++) {
                T *low = rows + n * stride + head * W, *high = low + W / 2;
                for (int64_t i = 0; i < W / 2; i += LANES) {
                    vf a = get(low + i), b = get(high + i), cos = load(c + i), sin = load(s + i) * splat(sign);
                    put(low + i, a * cos - b * sin);
                    put(high + i, b * cos + a * sin);
                }
            }
        }
    });
}

// gate_up (N, 2F), gate first: silu(gate) * up -> a (N, F).
template <class T> void swiglu_forward(const T* gate_up, T* a, int64_t N, int64_t F) {
    over_rows(N, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; n++)
            for (int64_t f = 0; f < F; f += LANES) {
                const T* g = gate_up + n * 2 * F + f;
                put(a + n * F + f, silu(get(g)) * get(g + F));
            }
    });
}

// The gradients of gate and up take their place.
template <class T> void swiglu_backward(const T* da, T* gate_up, int64_t N, int64_t F) {
    over_rows(N, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = begin; n < end; n++)
            for (int64_t f = 0; f < F; f += LANES) {
                T* p = gate_up + n * 2 * F + f;
                vf g = get(p), u = get(p + F), d = get(da + n * F + f), one = splat(1.0f);
                vf s = one / (one + exp(splat(0.0f) - max(g, splat(-87.0f))));
                put(p, d * u * s * (one + g * (one - s)));
                put(p + F, d * g * s);
            }
    });
}

// Logits (C, V) become their gradient of the summed loss, softmax minus one at the target; a negative target counts
// for nothing. Adds to loss and correct (the likeliest is the target).
template <class T> void cross_entropy(T* logits, const int64_t* target_C, double* loss, double* correct, int64_t C, int64_t V, int backward) {
    std::vector<double> losses(C, 0.0), rights(C, 0.0);
    over_rows(C, [&](int64_t begin, int64_t end, int) {
        for (int64_t c = begin; c < end; c++) {
            T* row = logits + c * V;
            int64_t target = target_C[c];
            if (target < 0) {
                if (backward) for (int64_t v = 0; v < V; v += LANES) put(row + v, splat(0.0f));
                continue;
            }
            vf high = get(row);
            for (int64_t v = LANES; v < V; v += LANES) high = max(high, get(row + v));
            float top = highest(high), wanted = get1(row + target);
            vf sums = splat(0.0f);
            if (backward && sizeof(T) == 4) {
                for (int64_t v = 0; v < V; v += LANES) {
                    vf e = exp(get(row + v) - splat(top));
                    put(row + v, e);
                    sums = sums + e;
                }
            } else {
                for (int64_t v = 0; v < V; v += LANES) sums = sums + exp(get(row + v) - splat(top));
            }
            float total = sum(sums);
            losses[c] = double(std::log(total)) + double(top) - double(wanted);
            rights[c] = wanted == top;
            if (!backward) continue;
            vf share = splat(1.0f / total);
            if (sizeof(T) == 4) for (int64_t v = 0; v < V; v += LANES) put(row + v, get(row + v) * share);
            else for (int64_t v = 0; v < V; v += LANES) put(row + v, exp(get(row + v) - splat(top)) * share);
            put1(row + target, std::exp(wanted - top) / total - 1.0f);
        }
    });
    for (int64_t c = 0; c < C; c++) *loss += losses[c], *correct += rights[c];
}

// dtable (V, D) += dx (N, D) at each token's row; each thread has its own columns, so the order of sums is fixed.
inline void embedding_backward(const float* dx, const int64_t* token_N, float* dtable, int64_t N, int64_t D) {
    over_rows(D / LANES, [&](int64_t begin, int64_t end, int) {
        for (int64_t n = 0; n < N; n++) {
            float* row = dtable + token_N[n] * D;
            for (int64_t d = begin * LANES; d < end * LANES; d += LANES) store(row + d, load(row + d) + load(dx + n * D + d));
        }
    });
}

// sums (float32) += addends * factor.
template <class T> void accumulate(float* sums, const T* addends, int64_t count, float factor) {
    over_rows(count / LANES, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin * LANES; i < end * LANES; i += LANES) store(sums + i, fma(get(addends + i), splat(factor), load(sums + i)));
    });
    for (int64_t i = count / LANES * LANES; i < count; i++) sums[i] += get1(addends + i) * factor;
}

struct AdamW {
    float gradient_factor, decay, beta1, beta2, mean_correction, root_correction, epsilon, learning_rate;
};

// One step over a flat vector; see trainer/optimizers.py. `half_value`, where not null, gets the new values in bfloat16.
inline void adamw(float* value, const float* gradient, float* mean, float* square, half_t* half_value, int64_t count, const AdamW& s) {
    over_rows(count / LANES, [&](int64_t begin, int64_t end, int) {
        const vf b1 = splat(1 - s.beta1), b2 = splat(s.beta2), c2 = splat(1 - s.beta2);
        const vf step = splat(s.learning_rate / s.mean_correction), epsilon = splat(s.epsilon);
        for (int64_t i = begin * LANES; i < end * LANES; i += LANES) {
            vf g = load(gradient + i) * splat(s.gradient_factor), m = load(mean + i);
            m = fma(b1, g - m, m);
            vf q = fma(c2 * g, g, load(square + i) * b2), root;
            for (int lane = 0; lane < LANES; lane++) root[lane] = std::sqrt(q[lane]);
            vf v = load(value + i) * splat(s.decay) - step * m / (root / splat(s.root_correction) + epsilon);
            store(mean + i, m);
            store(square + i, q);
            store(value + i, v);
            if (half_value) put(half_value + i, v);
        }
    });
}

}  // namespace kf
