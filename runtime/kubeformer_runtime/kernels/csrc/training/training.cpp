// The C functions of the training library; kernels/training.py says what they take. `half`: numbers are bfloat16.
#include "attention.h"
#include "pointwise.h"

using namespace kf;

#define KF_BY_TYPE(half, call)         \
    do {                               \
        if (half) {                    \
            typedef half_t E;          \
            call;                      \
        } else {                       \
            typedef float E;           \
            call;                      \
        }                              \
    } while (0)

extern "C" {

void kt_norm_forward(int half, const float* x, const void* y, float* out, const float* weight, void* h, float* scale, int64_t N, int64_t D, float epsilon) {
    KF_BY_TYPE(half, norm_forward(x, (const E*)y, out, weight, (E*)h, scale, N, D, epsilon));
}
void kt_norm_backward(int half, const void* dh, const float* x, const float* weight, const float* scale, float* dx, void* narrow, float* dweight, int64_t N, int64_t D, float factor) {
    KF_BY_TYPE(half, norm_backward((const E*)dh, x, weight, scale, dx, (E*)narrow, dweight, N, D, factor));
}
void kt_rotate(int half, void* rows, int64_t stride, const float* cosine, const float* sine, int64_t N, int64_t T, int64_t heads, int64_t W, float sign) {
    KF_BY_TYPE(half, rotate((E*)rows, stride, cosine, sine, N, T, heads, W, sign));
}
void kt_swiglu_forward(int half, const void* gate_up, void* a, int64_t N, int64_t F) {
    KF_BY_TYPE(half, swiglu_forward((const E*)gate_up, (E*)a, N, F));
}
void kt_swiglu_backward(int half, const void* da, void* gate_up, int64_t N, int64_t F) {
    KF_BY_TYPE(half, swiglu_backward((const E*)da, (E*)gate_up, N, F));
}
void kt_cross_entropy(int half, void* logits, const int64_t* target, double* loss, double* correct, int64_t C, int64_t V, int backward) {
    KF_BY_TYPE(half, cross_entropy((E*)logits, target, loss, correct, C, V, backward));
}
void kt_embedding_backward(const float* dx, const int64_t* token, float* dtable, int64_t N, int64_t D) {
    embedding_backward(dx, token, dtable, N, D);
}
void kt_accumulate(int half, float* sums, const void* addends, int64_t count, float factor) {
    KF_BY_TYPE(half, accumulate(sums, (const E*)addends, count, factor));
}
void kt_attention_forward(int half, const void* qkv, const int32_t* first, void* out, float* lse, int64_t B, int64_t T, int64_t H, int64_t K, int64_t W, int64_t block) {
    KF_BY_TYPE(half, attention_forward((const E*)qkv, first, (E*)out, lse, Shape{B, T, H, K, W, block}));
}
void kt_attention_backward(int half, const void* qkv, const int32_t* first, const void* out, const float* lse, const void* dout, void* dqkv, int64_t B, int64_t T, int64_t H, int64_t K, int64_t W, int64_t block) {
    KF_BY_TYPE(half, attention_backward((const E*)qkv, first, (const E*)out, lse, (const E*)dout, (E*)dqkv, Shape{B, T, H, K, W, block}));
}
void kt_adamw(float* value, const float* gradient, float* mean, float* square, uint16_t* half_value, int64_t count, const AdamW* step) {
    adamw(value, gradient, mean, square, half_value, count, *step);
}
}
