// LoRA adapters: what one adds to a row of y = W x is B (A x), with the scale in B.
//
// A is kept by rows; B in panels of 32 outputs, [rank][32], so that it is added where a product emits a panel.
#pragma once
#include <vector>
#include "linear.h"

namespace kf {

struct AdapterPart {  // of one matrix
    int rank = 0, cols = 0;
    std::vector<float> a, b;

    void set(int rank_, int rows, int cols_, const float* a_, const float* b_) {  // a (rank, cols), b (rows, rank)
        rank = rank_, cols = cols_;
        a.assign(a_, a_ + size_t(rank) * cols);
        const int panels = (rows + PANEL - 1) / PANEL;
        b.assign(size_t(panels) * rank * PANEL, 0.0f);
        for (int row = 0; row < rows; row++)
            for (int r = 0; r < rank; r++) b[(size_t(row / PANEL) * rank + r) * PANEL + row % PANEL] = b_[size_t(row) * rank + r];
    }
    void shrink(const float* x, float* t) const {  // t = A x
        for (int r = 0; r < rank; r++) {
            const float* row = a.data() + size_t(r) * cols;
            vf total = splat(0.0f);
            int i = 0;
            for (; i + LANES <= cols; i += LANES) total = fma(load(row + i), load(x + i), total);
            float rest = sum(total);
            for (; i < cols; i++) rest += row[i] * x[i];
            t[r] = rest;
        }
    }
    void expand(const float* t, int panel, float* y) const {  // y += the panel of B t
        const float* at = b.data() + size_t(panel) * rank * PANEL;
        vf low = load(y), high = load(y + LANES);
        for (int r = 0; r < rank; r++, at += PANEL) low = fma(load(at), splat(t[r]), low), high = fma(load(at + LANES), splat(t[r]), high);
        store(y, low), store(y + LANES, high);
    }
};

using Adapter = std::vector<AdapterPart>;  // part `which` of layer i at 4 i + which

}  // namespace kf
