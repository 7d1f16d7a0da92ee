// Loops over PyTorch's own threads, and numbers that are float32 or bfloat16.
//
// PyTorch brings the OpenMP runtime (libgomp) into the process; its functions are called by name here, without linking,
// so that these kernels and PyTorch's run in one set of threads: two sets would spin against each other. How work is
// cut depends on the number of threads alone, so results are the same bits in every run.
#pragma once
#include <algorithm>
#include <atomic>
#include "../simd.h"

extern "C" void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags);
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();
extern "C" int omp_get_max_threads();

namespace kf {

// f(thread, threads), once in each.
template <class F> void in_threads(F f) {
    GOMP_parallel([](void* data) { (*static_cast<F*>(data))(omp_get_thread_num(), omp_get_num_threads()); }, &f, 0, 0);
}

// f(begin, end, thread): rows cut into one run of neighbours for each thread.
template <class F> void over_rows(int64_t rows, F f) {
    in_threads([&](int thread, int threads) {
        int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
        if (begin < end) f(begin, end, thread);
    });
}

// f(item, thread): each item by whichever thread is free. For items that write apart from each other.
template <class F> void over_items(int64_t items, F f) {
    std::atomic<int64_t> next{0};
    in_threads([&](int thread, int) {
        for (int64_t item; (item = next.fetch_add(1)) < items;) f(item, thread);
    });
}

typedef uint16_t half_t;  // bfloat16
KF_INLINE vf get(const float* p) { return load(p); }
KF_INLINE vf get(const half_t* p) { return widen_lanes(p); }
KF_INLINE void put(float* p, vf v) { store(p, v); }
KF_INLINE void put(half_t* p, vf v) { narrow_lanes(p, v); }
KF_INLINE float get1(const float* p) { return *p; }
KF_INLINE float get1(const half_t* p) { return widen(*p); }
KF_INLINE void put1(float* p, float v) { *p = v; }
KF_INLINE void put1(half_t* p, float v) { *p = narrow(v); }

}  // namespace kf
