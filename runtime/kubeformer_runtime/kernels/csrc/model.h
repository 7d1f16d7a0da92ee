// A Llama-family decoder: one call computes one step of all layers for a flat batch of token rows.
//
// All threads walk through the same phases and meet at barriers. A phase splits rows, panels of a weight, or
// (row, key-value head) pairs of attention among them; none splits a sum, so results do not depend on the number of
// threads, nor on which of them computes what: whoever is through with its part takes from the others', because a core
// may be away for a moment. The residual stream is float32 whatever the weights are.
#pragma once
#include <atomic>
#include <memory>
#include <vector>
#include "adapter.h"
#include "attention.h"
#include "pool.h"

namespace kf {

struct Config {  // mirrored field by field in binding.py
    int32_t vocabulary, width, layers, heads, kv_heads, head_width, mlp_width, max_length;
    int32_t type;       // of activations, as the matrices take them (int4: I8, which is packed alike)
    int32_t half;       // bfloat16 cache and embedding, else float32
    int32_t qk_norm;    // RMSNorm of every head of q and k
    int32_t num_blocks; // of the cache, 16 tokens each
    int32_t threads;
    int32_t alone_bytes; // a step that reads less than this in weights, rows multiplied, runs in one thread
    float norm_epsilon;
};

struct Step {  // mirrored field by field in binding.py
    int32_t rows, samples;
    const int32_t *tokens, *positions, *slots;  // (rows); slot = block * 16 + offset
    const int32_t *table_starts;                // (rows): where in `tables` the row's block table begins
    const int32_t *tables;
    const int32_t *sample_rows;                 // (samples)
    const int32_t *adapters;                    // (rows): the row's adapter, -1 for none; null where no row has one
    float *logits;                              // (samples, vocabulary)
};

enum Matrix : int32_t { QKV = 0, OUTPUT = 1, GATE_UP = 2, DOWN = 3, HEAD = 4 };
enum Vector : int32_t { ATTENTION_NORM = 0, MLP_NORM = 1, Q_NORM = 2, K_NORM = 3, FINAL_NORM = 4 };

struct Layer {
    Linear qkv, output, gate_up, down;
    std::vector<float> attention_norm, mlp_norm, q_norm, k_norm;
    int window = 0;  // tokens seen, the own one among them; 0: all
};

constexpr int PHASES = 4;    // products of a layer; each has a phase that packs and one that multiplies
constexpr int FEW_ROWS = 2;  // up to here every thread packs all rows for itself, which saves a barrier

class Model {
  public:
    explicit Model(const Config& config);
    Linear& matrix(int layer, int which);
    void set_matrix(int layer, int which, int type, int rows, int cols, const void* weight, bool half, const float* bias);
    void set_vector(int layer, int which, const float* values, int count);
    void set_embedding(const void* table) { embedding_ = table; }     // (vocabulary, width), not copied
    void set_rope(const float* turns) { turns_ = turns; }             // (max_length, head_width / 2, 2) cos and sin, not copied
    void set_window(int layer, int tokens) { layers_.at(size_t(layer)).window = tokens; }
    void set_adapter(int slot, int layer, int which, int rank, int rows, int cols, const float* a, const float* b);
    void remove_adapter(int slot) { adapters_.at(size_t(slot)).clear(); }
    void step(const Step& step);
    size_t weight_bytes() const { return weight_bytes_; }
    size_t cache_bytes() const { return cache_.bytes(); }
    Pool& pool() { return pool_; }

  private:
    struct Target { const Step* step; int layer, which; };  // the matrix that a product is about
    void work(const Step& step, int id);
    void reserve(int rows, int longest, int samples);
    void normalise(const float* x, const std::vector<float>& weight, float* y) const;
    void rotate(const Layer& layer, int index, const Step& step, int row);
    void attend_item(const Layer& layer, int index, const Step& step, int item, int id);
    // Packs rows for a product; `fill(row, to)` writes a row of floats or returns where it lies.
    template <class Fill> const Rows& pack(int rows, int k, int id, const Target& target, Fill fill);
    // Calls work(begin, end) for pieces of `count` things until none is left; every thread takes part.
    template <class Work> void share(int phase, int count, int piece, int id, Work work);
    template <class Emit> void product(const Linear& L, const Rows& x, int id, const Target& target, Emit emit);
    const AdapterPart* adapter(const Target& target, int row) const;
    int phase_of(const Target& target) const { return target.which == HEAD ? PHASES * config_.layers : PHASES * target.layer + target.which; }
    // Where a row's A x lies; with few rows every thread has its own.
    float* shrunk(int rows, int row, int id) { return (rows <= FEW_ROWS ? own_[size_t(id)].shrunk : shrunk_).as<float>() + size_t(row) * widest_rank_; }
    uint8_t* cache_of(int layer) const { return cache_.as<uint8_t>() + size_t(layer) * config_.num_blocks * shape_.block_bytes(); }

    const Config config_;
    AttentionShape shape_{};
    std::vector<Layer> layers_;
    Linear head_;
    std::vector<float> final_norm_;
    const void* embedding_ = nullptr;
    const float* turns_ = nullptr;
    Memory cache_;
    size_t weight_bytes_ = 0;
    std::vector<Adapter> adapters_;
    int widest_rank_ = 0;

    // Scratch of a step.
    int capacity_rows_ = 0, capacity_samples_ = 0, stride_ = 0;
    Memory x_, qkv_, q_, attention_, activation_, packed_memory_, shrunk_;
    Rows packed_;
    struct Private { Memory packed_memory, row, probability, shrunk; Rows packed; };
    std::vector<Private> own_;
    std::vector<std::atomic<int>> next_item_;
    struct alignas(64) Part { std::atomic<int> taken{0}; };  // of a phase's things, those that one thread begins with
    std::vector<Part> parts_;                                // [phase][thread]
    Pool pool_;
};

inline Model::Model(const Config& config)
    : config_(config), layers_(size_t(config.layers)), own_(size_t(std::max(1, config.threads))), next_item_(size_t(config.layers)),
      parts_(size_t(2 * PHASES * config.layers + 2) * std::max(1, config.threads)), pool_(config.threads) {
    const int padded = (config.head_width + LANES - 1) / LANES * LANES;
    shape_ = {config.heads, config.kv_heads, config.head_width, padded, config.half != 0, 1.0f / std::sqrt(float(config.head_width))};
    cache_ = Memory(size_t(config.layers) * config.num_blocks * shape_.block_bytes());
}

inline Linear& Model::matrix(int layer, int which) {
    if (which == HEAD) return head_;
    Layer& l = layers_.at(size_t(layer));
    return which == QKV ? l.qkv : which == OUTPUT ? l.output : which == GATE_UP ? l.gate_up : l.down;
}

inline void Model::set_matrix(int layer, int which, int type, int rows, int cols, const void* weight, bool half, const float* bias) {
    Linear& L = matrix(layer, which);
    L.shape(type, rows, cols);
    L.memory = Memory(L.bytes());
    L.data = L.memory.as<uint8_t>();
    weight_bytes_ += L.bytes();
    struct Job { Model* model; Linear* L; const void* weight; bool half; } job{this, &L, weight, half};
    pool_.run([](void* p, int id) {
        Job& j = *static_cast<Job*>(p);
        const int n = j.model->pool_.active();
        for (int panel = j.L->panels * id / n; panel < j.L->panels * (id + 1) / n; panel++)
            j.L->pack_panel(panel, j.L->memory.as<uint8_t>() + size_t(panel) * j.L->panel_bytes, j.weight, j.half);
    }, &job);
    if (bias) {  // padded, so that a panel reads all of its own
        L.bias_memory = Memory(size_t(L.panels) * PANEL * 4);
        std::memcpy(L.bias_memory.as<float>(), bias, size_t(rows) * 4);
        L.bias = L.bias_memory.as<float>();
    }
}

inline void Model::set_vector(int layer, int which, const float* values, int count) {
    std::vector<float> v(values, values + count);
    if (which == FINAL_NORM) { final_norm_ = std::move(v); return; }
    Layer& l = layers_.at(size_t(layer));
    (which == ATTENTION_NORM ? l.attention_norm : which == MLP_NORM ? l.mlp_norm : which == Q_NORM ? l.q_norm : l.k_norm) = std::move(v);
}

inline void Model::set_adapter(int slot, int layer, int which, int rank, int rows, int cols, const float* a, const float* b) {
    if (adapters_.size() <= size_t(slot)) adapters_.resize(size_t(slot) + 1);
    Adapter& adapter = adapters_[size_t(slot)];
    adapter.resize(size_t(4) * config_.layers);
    adapter.at(size_t(4 * layer + which)).set(rank, rows, cols, a, b);
    widest_rank_ = std::max(widest_rank_, rank);
}

inline void Model::reserve(int rows, int longest, int samples) {
    const int heads = config_.heads * config_.head_width, widest = std::max({config_.width, heads, layers_[0].down.k});
    const int stride = (longest + 2 * BLOCK) / BLOCK * BLOCK;
    const int need = std::max(rows, samples);
    if (need > capacity_rows_) {
        const size_t n = size_t(need) * 4;
        x_ = Memory(n * config_.width);
        qkv_ = Memory(n * (heads + 2 * config_.kv_heads * config_.head_width));
        q_ = Memory(n * config_.heads * shape_.padded);
        attention_ = Memory(n * heads);
        activation_ = Memory(n * layers_[0].down.k);
        packed_memory_ = Memory(Rows::bytes(config_.type, widest, need));
        capacity_rows_ = need;
    }
    if (widest_rank_ && shrunk_.bytes() < size_t(need) * widest_rank_ * 4) shrunk_ = Memory(size_t(need) * widest_rank_ * 4);
    for (Private& own : own_) {
        if (!own.packed_memory.bytes()) {
            own.packed_memory = Memory(Rows::bytes(config_.type, widest, FEW_ROWS));
            own.row = Memory(size_t(widest + LANES) * 4);
        }
        if (widest_rank_ && own.shrunk.bytes() < size_t(FEW_ROWS) * widest_rank_ * 4) own.shrunk = Memory(size_t(FEW_ROWS) * widest_rank_ * 4);
        if (stride > stride_) own.probability = Memory(size_t(4) * stride * 4);
    }
    stride_ = std::max(stride_, stride);
}

inline void Model::step(const Step& step) {
    int longest = 0;
    for (int r = 0; r < step.rows; r++) longest = std::max(longest, step.positions[r] + 1);
    reserve(step.rows, longest, step.samples);
    for (auto& next : next_item_) next.store(0, std::memory_order_relaxed);
    for (auto& part : parts_) part.taken.store(0, std::memory_order_relaxed);
    struct Job { Model* model; const Step* step; } job{this, &step};
    const bool alone = weight_bytes_ * size_t(step.rows) < size_t(config_.alone_bytes);
    pool_.run([](void* p, int id) { Job& j = *static_cast<Job*>(p); j.model->work(*j.step, id); }, &job, alone);
}

inline void Model::normalise(const float* x, const std::vector<float>& weight, float* y) const {
    const int n = int(weight.size());
    vf squares = splat(0.0f);
    int i = 0;
    for (; i + LANES <= n; i += LANES) { vf v = load(x + i); squares = fma(v, v, squares); }
    float total = sum(squares);
    for (; i < n; i++) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / float(n) + config_.norm_epsilon);
    for (i = 0; i + LANES <= n; i += LANES) store(y + i, load(x + i) * splat(scale) * load(weight.data() + i));
    for (; i < n; i++) y[i] = x[i] * scale * weight[size_t(i)];
}

inline const AdapterPart* Model::adapter(const Target& target, int row) const {
    if (target.which == HEAD || !target.step->adapters || target.step->adapters[row] < 0) return nullptr;
    const AdapterPart& part = adapters_[size_t(target.step->adapters[row])][size_t(4 * target.layer + target.which)];
    return part.rank ? &part : nullptr;
}

template <class Fill> inline const Rows& Model::pack(int rows, int k, int id, const Target& target, Fill fill) {
    Private& own = own_[size_t(id)];
    auto put = [&](Rows& to, int row) {
        const float* x = fill(row, own.row.template as<float>());
        to.put(row, x);
        if (const AdapterPart* part = adapter(target, row)) part->shrink(x, shrunk(rows, row, id));
    };
    if (rows <= FEW_ROWS) {
        own.packed.attach(own.packed_memory.as<uint8_t>(), config_.type, k, rows);
        for (int r = 0; r < rows; r++) put(own.packed, r);
        return own.packed;
    }
    if (id == 0) packed_.attach(packed_memory_.as<uint8_t>(), config_.type, k, rows);
    Rows mine;
    mine.attach(packed_memory_.as<uint8_t>(), config_.type, k, rows);
    share(2 * phase_of(target), (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, 1, id, [&](int begin, int end) {
        for (int r = begin * BLOCK_ROWS; r < std::min(rows, end * BLOCK_ROWS); r++) put(mine, r);
    });
    pool_.barrier();
    return packed_;
}

template <class Work> inline void Model::share(int phase, int count, int piece, int id, Work work) {
    const int n = pool_.active();
    Part* parts = &parts_[size_t(phase) * size_t(pool_.size())];
    for (int i = 0; i < n; i++) {  // one's own part first
        const int whose = (id + i) % n, from = int(int64_t(count) * whose / n), to = int(int64_t(count) * (whose + 1) / n);
        for (int at; (at = from + parts[whose].taken.fetch_add(piece, std::memory_order_relaxed)) < to;) work(at, std::min(at + piece, to));
    }
}

template <class Emit> inline void Model::product(const Linear& L, const Rows& x, int id, const Target& target, Emit emit) {
    auto finish = [&](int row, int panel, float* v) {
        if (L.bias) for (int i = 0; i < PANEL; i++) v[i] += L.bias[panel * PANEL + i];
        if (const AdapterPart* part = adapter(target, row)) part->expand(shrunk(x.rows, row, id), panel, v);
        emit(row, panel * PANEL, std::min(PANEL, L.n - panel * PANEL), v);
    };
    share(2 * phase_of(target) + 1, L.panels, x.rows <= FEW_ROWS ? 4 : 1, id, [&](int begin, int end) { multiply(L, x, begin, end, finish); });
    pool_.barrier();
}

// Turns q and k of a row, stores k and v in the cache and q for attention.
inline void Model::rotate(const Layer& layer, int index, const Step& step, int row) {
    const int w = config_.head_width, h = config_.heads, g = config_.kv_heads, words = shape_.half ? shape_.padded / 2 : shape_.padded;
    float* qkv = qkv_.as<float>() + size_t(row) * (h + 2 * g) * w;
    const float* turn = turns_ + size_t(step.positions[row]) * w;
    for (int head = 0; head < h + g; head++) {
        float* v = qkv + head * w;
        if (config_.qk_norm) normalise(v, head < h ? layer.q_norm : layer.k_norm, v);
        for (int i = 0; i < w; i += 2) {
            const float a = v[i], b = v[i + 1];
            v[i] = a * turn[i] - b * turn[i + 1];
            v[i + 1] = a * turn[i + 1] + b * turn[i];
        }
        if (head < h) {
            uint32_t* q = q_.as<uint32_t>() + (size_t(row) * h + head) * words;
            if (shape_.half) for (int i = 0; i < w; i += 2) q[i / 2] = narrow(v[i]) | uint32_t(narrow(v[i + 1])) << 16;
            else std::memcpy(q, v, size_t(w) * 4);
            const int used = shape_.half ? w / 2 : w;
            std::memset(q + used, 0, size_t(words - used) * 4);
        }
    }
    for (int head = 0; head < g; head++)
        write_cache(shape_, cache_of(index), step.slots[row], head, qkv + (h + head) * w, qkv + (h + g + head) * w);
}

inline void Model::attend_item(const Layer& layer, int index, const Step& step, int item, int id) {
    const int row = item / config_.kv_heads, head = item % config_.kv_heads, served = config_.heads / config_.kv_heads;
    const int words = shape_.half ? shape_.padded / 2 : shape_.padded, length = step.positions[row] + 1;
    const int begin = layer.window ? std::max(0, length - layer.window) : 0;
    const size_t first = size_t(row) * config_.heads + size_t(head) * served;
    attend(shape_, cache_of(index), step.tables + step.table_starts[row], head, begin, length, q_.as<uint32_t>() + first * words,
           own_[size_t(id)].probability.as<float>(), stride_, attention_.as<float>() + first * config_.head_width);
}

inline void Model::work(const Step& step, int id) {
    const int n = pool_.active(), rows = step.rows, width = config_.width, heads = config_.heads * config_.head_width;
    const int qkv_width = heads + 2 * config_.kv_heads * config_.head_width;
    const int begin = int(int64_t(rows) * id / n), end = int(int64_t(rows) * (id + 1) / n);
    float *x = x_.as<float>(), *qkv = qkv_.as<float>(), *attention = attention_.as<float>(), *activation = activation_.as<float>();

    for (int r = begin; r < end; r++) {
        const size_t from = size_t(step.tokens[r]) * width;
        if (config_.half) for (int i = 0; i < width; i++) x[size_t(r) * width + i] = widen(static_cast<const uint16_t*>(embedding_)[from + i]);
        else std::memcpy(x + size_t(r) * width, static_cast<const float*>(embedding_) + from, size_t(width) * 4);
    }
    pool_.barrier();
    auto add = [&](int row, int col, int count, const float* v) {
        float* to = x + size_t(row) * width + col;
        for (int i = 0; i < count; i++) to[i] += v[i];
    };
    for (int index = 0; index < config_.layers; index++) {
        Layer& layer = layers_[size_t(index)];
        const Rows& for_qkv = pack(rows, width, id, {&step, index, QKV}, [&](int r, float* y) { normalise(x + size_t(r) * width, layer.attention_norm, y); return y; });
        product(layer.qkv, for_qkv, id, {&step, index, QKV}, [&](int row, int col, int count, const float* v) {
            std::memcpy(qkv + size_t(row) * qkv_width + col, v, size_t(count) * 4);
        });
        for (int r = begin; r < end; r++) rotate(layer, index, step, r);
        pool_.barrier();
        const int items = rows * config_.kv_heads;
        for (int item; (item = next_item_[size_t(index)].fetch_add(1, std::memory_order_relaxed)) < items;) attend_item(layer, index, step, item, id);
        pool_.barrier();
        const Target output{&step, index, OUTPUT}, down{&step, index, DOWN};
        product(layer.output, pack(rows, heads, id, output, [&](int r, float*) { return attention + size_t(r) * heads; }), id, output, add);
        const Rows& for_mlp = pack(rows, width, id, {&step, index, GATE_UP}, [&](int r, float* y) { normalise(x + size_t(r) * width, layer.mlp_norm, y); return y; });
        const int inner = layer.down.k;  // mlp_width, rounded up to whole vectors
        product(layer.gate_up, for_mlp, id, {&step, index, GATE_UP}, [&](int row, int col, int, const float* v) {  // 16 of gate, 16 of up
            store(activation + size_t(row) * inner + col / 2, silu(load(v)) * load(v + LANES));
        });
        product(layer.down, pack(rows, inner, id, down, [&](int r, float*) { return activation + size_t(r) * inner; }), id, down, add);
    }
    if (!step.samples) return;
    const Rows& last = pack(step.samples, width, id, {&step, 0, HEAD}, [&](int s, float* y) { normalise(x + size_t(step.sample_rows[s]) * width, final_norm_, y); return y; });
    product(head_, last, id, {&step, 0, HEAD}, [&](int s, int col, int count, const float* v) {
        std::memcpy(step.logits + size_t(s) * config_.vocabulary + col, v, size_t(count) * 4);
    });
}

}  // namespace kf
