// The library's C interface, used through ctypes (binding.py). Functions that can fail return null or -1.
#include "model.h"

using kf::Model;

extern "C" {

int32_t kf_version() { return 1; }

Model* kf_create(const kf::Config* config) {
    try { return new Model(*config); } catch (...) { return nullptr; }
}
void kf_destroy(Model* model) { delete model; }

int32_t kf_set_matrix(Model* model, int32_t layer, int32_t which, int32_t type, int32_t rows, int32_t cols, const void* weight, int32_t half, const float* bias) {
    try { model->set_matrix(layer, which, type, rows, cols, weight, half != 0, bias); return 0; } catch (...) { return -1; }
}
int32_t kf_set_vector(Model* model, int32_t layer, int32_t which, const float* values, int32_t count) {
    try { model->set_vector(layer, which, values, count); return 0; } catch (...) { return -1; }
}
void kf_set_embedding(Model* model, const void* table) { model->set_embedding(table); }
void kf_set_rope(Model* model, const float* turns) { model->set_rope(turns); }
int32_t kf_set_window(Model* model, int32_t layer, int32_t tokens) {
    try { model->set_window(layer, tokens); return 0; } catch (...) { return -1; }
}
int32_t kf_set_adapter(Model* model, int32_t slot, int32_t layer, int32_t which, int32_t rank, int32_t rows, int32_t cols, const float* a, const float* b) {
    try { model->set_adapter(slot, layer, which, rank, rows, cols, a, b); return 0; } catch (...) { return -1; }
}
int32_t kf_remove_adapter(Model* model, int32_t slot) {
    try { model->remove_adapter(slot); return 0; } catch (...) { return -1; }
}
int32_t kf_step(Model* model, const kf::Step* step) {
    try { model->step(*step); return 0; } catch (...) { return -1; }
}
int64_t kf_weight_bytes(const Model* model) { return int64_t(model->weight_bytes()); }
int64_t kf_cache_bytes(const Model* model) { return int64_t(model->cache_bytes()); }

// One product, for tests and benchmarks: out (m, n) = x (m, k) · weight (n, k)^T, `repeat` times. Returns seconds a time.
double kf_product(int32_t type, int32_t m, int32_t n, int32_t k, const float* x, const float* weight, float* out, int32_t threads, int32_t repeat) {
    using namespace kf;
    try {
        Pool pool(threads);
        Linear L;
        L.shape(type, n, k);
        L.memory = Memory(L.bytes());
        L.data = L.memory.as<uint8_t>();
        for (int p = 0; p < L.panels; p++) L.pack_panel(p, L.memory.as<uint8_t>() + size_t(p) * L.panel_bytes, weight, false);
        Memory memory(Rows::bytes(type, k, m));
        Rows rows;
        rows.attach(memory.as<uint8_t>(), type, k, m);
        for (int r = 0; r < m; r++) rows.put(r, x + size_t(r) * k);
        struct Job { Pool& pool; Linear& L; Rows& rows; float* out; } job{pool, L, rows, out};
        timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int i = 0; i < repeat; i++) pool.run([](void* p, int id) {
            Job& j = *static_cast<Job*>(p);
            const int t = j.pool.active();
            multiply(j.L, j.rows, j.L.panels * id / t, j.L.panels * (id + 1) / t, [&](int row, int panel, const float* v) {
                std::memcpy(j.out + size_t(row) * j.L.n + panel * PANEL, v, size_t(std::min(PANEL, j.L.n - panel * PANEL)) * 4);
            });
        }, &job);
        clock_gettime(CLOCK_MONOTONIC, &b);
        return (double(b.tv_sec - a.tv_sec) + 1e-9 * double(b.tv_nsec - a.tv_nsec)) / repeat;
    } catch (...) { return -1.0; }
}

// Bytes a second that `threads` threads read together from `bytes` of memory, best of `repeat`.
double kf_bandwidth(int64_t bytes, int32_t threads, int32_t repeat) {
    using namespace kf;
    try {
        Pool pool(threads);
        Memory memory{size_t(bytes)};
        std::memset(memory.as<char>(), 1, size_t(bytes));
        struct Job { Pool& pool; const uint8_t* start; size_t bytes; std::atomic<int64_t> total; } job{pool, memory.as<uint8_t>(), size_t(bytes), {0}};
        double best = 0.0;
        for (int i = 0; i < repeat; i++) {
            timespec a, b;
            clock_gettime(CLOCK_MONOTONIC, &a);
            pool.run([](void* p, int id) {
                Job& j = *static_cast<Job*>(p);
                const size_t t = size_t(j.pool.active()), from = j.bytes / t / 256 * 256 * size_t(id), to = from + j.bytes / t / 256 * 256;
                vi s[4] = {splat(0), splat(0), splat(0), splat(0)};
                for (size_t at = from; at < to; at += 256) {
                    prefetch(j.start + at + 2048), prefetch(j.start + at + 2112), prefetch(j.start + at + 2176), prefetch(j.start + at + 2240);
                    for (int v = 0; v < 4; v++) s[v] ^= load_words(j.start + at + 64 * v);
                }
                const vi all = (s[0] ^ s[1]) ^ (s[2] ^ s[3]);
                j.total += all[0] ^ all[15];  // so that nothing is left out
            }, &job);
            clock_gettime(CLOCK_MONOTONIC, &b);
            best = std::max(best, double(bytes) / (double(b.tv_sec - a.tv_sec) + 1e-9 * double(b.tv_nsec - a.tv_nsec)));
        }
        return best;
    } catch (...) { return -1.0; }
}

}  // extern "C"
