// Sixteen lanes of float or int32, and the three multiply-accumulate steps that everything is built from.
//
// Written with GCC's vector extensions, so that the same source compiles for every instruction set; where the CPU
// has an instruction for a step (VDPBF16PS, VPDPBUSD, FMA), the step is that instruction. Layouts in memory are the
// same for all of them.
#pragma once
#include <cstdint>
#include <cstring>
#include <cmath>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace kf {

constexpr int LANES = 16;
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef int8_t vb __attribute__((vector_size(16)));

#define KF_INLINE static inline __attribute__((always_inline))

KF_INLINE vf load(const float* p) { vf v; std::memcpy(&v, p, 64); return v; }
KF_INLINE void store(float* p, vf v) { std::memcpy(p, &v, 64); }
KF_INLINE vi load_words(const void* p) { vi v; std::memcpy(&v, p, 64); return v; }
KF_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

#if defined(__AVX512F__)
KF_INLINE vf splat(float x) { return (vf)_mm512_set1_ps(x); }
KF_INLINE vi splat(int32_t x) { return (vi)_mm512_set1_epi32(x); }
KF_INLINE vf fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
KF_INLINE vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
KF_INLINE vf to_float(vi a) { return (vf)_mm512_cvtepi32_ps((__m512i)a); }
KF_INLINE vi to_int(vf a) { return (vi)_mm512_cvtps_epi32((__m512)a); }  // to nearest, ties to even
#else
KF_INLINE vf splat(float x) { return vf{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
KF_INLINE vi splat(int32_t x) { return vi{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#if defined(__FMA__)
KF_INLINE vf fma(vf a, vf b, vf c) {
    __m256 a2[2], b2[2], c2[2];
    std::memcpy(a2, &a, 64); std::memcpy(b2, &b, 64); std::memcpy(c2, &c, 64);
    for (int i = 0; i < 2; i++) c2[i] = _mm256_fmadd_ps(a2[i], b2[i], c2[i]);
    std::memcpy(&c, c2, 64);
    return c;
}
#else
KF_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
#endif
KF_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
KF_INLINE vf to_float(vi a) { return __builtin_convertvector(a, vf); }
KF_INLINE vi to_int(vf a) {  // adding and taking away 1.5 * 2^23 rounds to nearest, ties to even
    vf magic = splat(12582912.0f);
    return (vi)(a + magic) - (vi)magic;
}
#endif

KF_INLINE float sum(vf v) {  // always in the same tree, whatever the instruction set
    float a[16], b[8], c[4];
    std::memcpy(a, &v, 64);
    for (int i = 0; i < 8; i++) b[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; i++) c[i] = b[i] + b[i + 4];
    return (c[0] + c[2]) + (c[1] + c[3]);
}
KF_INLINE int32_t sum(vi v) {
    int32_t a[16], total = 0;
    std::memcpy(a, &v, 64);
    for (int i = 0; i < 16; i++) total += a[i];
    return total;
}
KF_INLINE float highest(vf v) {
    float a[16];
    std::memcpy(a, &v, 64);
    float m = a[0];
    for (int i = 1; i < 16; i++) m = a[i] > m ? a[i] : m;
    return m;
}

// bfloat16 is the upper half of a float32.
KF_INLINE float widen(uint16_t h) { uint32_t u = uint32_t(h) << 16; float f; std::memcpy(&f, &u, 4); return f; }
KF_INLINE uint16_t narrow(float f) {  // to nearest, ties to even; a NaN stays one
    uint32_t u;
    std::memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t((u >> 16) | 0x40u);
    return uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
KF_INLINE vf widen_lanes(const uint16_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
    vh h; std::memcpy(&h, p, 32);
    return (vf)(__builtin_convertvector(h, vu) << 16);
#endif
}
KF_INLINE void narrow_lanes(uint16_t* p, vf v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &h, 32);
#else
    for (int i = 0; i < LANES; i++) p[i] = narrow(v[i]);
#endif
}
KF_INLINE vf low_halves(vi pair) { return (vf)((vu)pair << 16); }
KF_INLINE vf high_halves(vi pair) { return (vf)((vu)pair & 0xffff0000u); }

// acc + w.low * x.low + w.high * x.high, sixteen pairs of bfloat16 against one pair.
KF_INLINE vf dot2(vf acc, vi w, uint32_t x) {
#if defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)w, (__m512bh)_mm512_set1_epi32(int(x)));
#else
    acc = fma(high_halves(w), splat(widen(uint16_t(x >> 16))), acc);
    return fma(low_halves(w), splat(widen(uint16_t(x))), acc);
#endif
}

// acc + sum of four products, sixteen quadruples of unsigned bytes against one of signed bytes.
KF_INLINE vi dot4(vi acc, vi w, int32_t x) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
#elif defined(__AVX2__)
    const int32_t even = (int32_t(int8_t(x)) & 0xffff) | (int32_t(int8_t(x >> 16)) << 16);
    const int32_t odd = (int32_t(int8_t(x >> 8)) & 0xffff) | (int32_t(int8_t(x >> 24)) << 16);
    const __m256i mask = _mm256_set1_epi32(0x00ff00ff), e = _mm256_set1_epi32(even), o = _mm256_set1_epi32(odd);
    __m256i w2[2], a2[2];
    std::memcpy(w2, &w, 64); std::memcpy(a2, &acc, 64);
    for (int i = 0; i < 2; i++) {
        a2[i] = _mm256_add_epi32(a2[i], _mm256_madd_epi16(_mm256_and_si256(w2[i], mask), e));
        a2[i] = _mm256_add_epi32(a2[i], _mm256_madd_epi16(_mm256_and_si256(_mm256_srli_epi16(w2[i], 8), mask), o));
    }
    std::memcpy(&acc, a2, 64);
    return acc;
#else
    vu u = (vu)w;
    acc += (vi)(u & 255u) * splat(int32_t(int8_t(x))) + (vi)((u >> 8) & 255u) * splat(int32_t(int8_t(x >> 8)));
    return acc + (vi)((u >> 16) & 255u) * splat(int32_t(int8_t(x >> 16))) + (vi)(u >> 24) * splat(int32_t(int8_t(x >> 24)));
#endif
}

// e^x for x <= 88, within 2 units in the last place; 0 far below. Cody-Waite reduction, polynomial of degree 6.
KF_INLINE vf exp(vf x) {
    x = max(x, splat(-87.3f));
    vi n = to_int(x * splat(1.44269504f));
    vf k = to_float(n);
    vf r = fma(k, splat(-0.693359375f), x);
    r = fma(k, splat(2.12194440e-4f), r);
    vf p = splat(1.3888889e-3f);
    p = fma(p, r, splat(8.3333333e-3f));
    p = fma(p, r, splat(4.1666668e-2f));
    p = fma(p, r, splat(1.6666667e-1f));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.0f));
    p = fma(p, r, splat(1.0f));
    return p * (vf)((n + 127) << 23);
}
KF_INLINE vf silu(vf g) {  // g / (1 + e^-g)
    vf cut = max(g, splat(-87.0f));
    return g / (splat(1.0f) + exp(splat(0.0f) - cut < splat(88.0f) ? splat(0.0f) - cut : splat(88.0f)));
}

}  // namespace kf
