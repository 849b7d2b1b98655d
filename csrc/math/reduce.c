/*
 * Reductions: the public entry points, and one variant of all loops per SIMD level. Pure functions of their arguments,
 * on the caller's thread, complete when they return; they own and allocate nothing and know nothing of ranks or rings.
 * The loops themselves, and why their bits don't depend on the level, are in reduce_loops.h.
 */
#include "math/reduce.h"

#include "bytes/dtype.h"
#include "math/copy.h"
#include "math/reduce_loops.h"
#include "math/simd.h"

#include <assert.h>

/* The loops at one level: the functions differ by their attribute alone. */
#define DEFINE_LEVEL(level, attribute)                                                                                 \
    attribute static void reduce_##level(struct reduction r, void *out, const void *acc, const void *own,              \
                                         size_t count) {                                                               \
        reduce_any(r, out, acc, own, count);                                                                           \
    }                                                                                                                  \
    attribute static void widen_##level(bool brain, void *acc, const void *own, size_t count) {                        \
        if (brain)                                                                                                     \
            widen_bf16(acc, own, count);                                                                               \
        else                                                                                                           \
            widen_f16(acc, own, count);                                                                                \
    }

DEFINE_LEVEL(portable, )
#if PC_SIMD_X86
DEFINE_LEVEL(avx2, __attribute__((target(PC_SIMD_TARGET_AVX2))))
DEFINE_LEVEL(avx512, __attribute__((target(PC_SIMD_TARGET_AVX512))))
#endif

int pc_reduce_level(void) {
    return pc_simd_level();
}

int pc_reduce_force_level(int level) {
    return pc_simd_force_level(level);
}

static void reduce(struct reduction r, void *out, const void *acc, const void *own, size_t count) {
#if PC_SIMD_X86
    int level = pc_simd_level();
    if (level == PC_SIMD_AVX512) {
        reduce_avx512(r, out, acc, own, count);
        return;
    }
    if (level == PC_SIMD_AVX2) {
        reduce_avx2(r, out, acc, own, count);
        return;
    }
#endif
    reduce_portable(r, out, acc, own, count);
}

void pc_reduce_accumulate(pcclDataType_t dtype, pcclRedOp_t op, void *acc, const void *own, size_t count) {
    struct reduction r = {.dtype = dtype, .op = op == pcclAvg ? pcclSum : op, .partial = true, .divisor = 1};
    reduce(r, acc, acc, own, count);
}

void pc_reduce_finish(pcclDataType_t dtype, pcclRedOp_t op, void *out, const void *acc, const void *own, size_t count,
                      uint64_t total_weight) {
    assert(op != pcclAvg || total_weight > 0);
    struct reduction r = {.dtype = dtype, .op = op, .partial = false, .divisor = total_weight};
    reduce(r, out, acc, own, count);
}

void pc_reduce_widen(pcclDataType_t dtype, void *acc, const void *own, size_t count) {
    if (pc_dtype_accumulator(dtype) == dtype) {
        if (acc != own) pc_copy_anyhow(acc, own, count * pc_dtype_bytes(dtype));
        return;
    }
    bool brain = dtype == pcclBFloat16;
#if PC_SIMD_X86
    int level = pc_simd_level();
    if (level == PC_SIMD_AVX512) {
        widen_avx512(brain, acc, own, count);
        return;
    }
    if (level == PC_SIMD_AVX2) {
        widen_avx2(brain, acc, own, count);
        return;
    }
#endif
    widen_portable(brain, acc, own, count);
}

/* Where the last of several operands has no weight, a sum is still to be divided. */
static void finish_integers(pcclDataType_t dtype, pcclRedOp_t op, void *out, const void *acc, size_t count,
                            uint64_t divisor) {
    static const uint64_t nothing[256];
    const size_t elem_bytes = pc_dtype_bytes(dtype), piece = sizeof nothing / elem_bytes;
    if (divisor == 1) {
        if (out != acc) pc_copy_anyhow(out, acc, count * elem_bytes);
        return;
    }
    for (size_t at = 0; at < count; at += piece) {
        const size_t elems = count - at < piece ? count - at : piece;
        pc_reduce_finish(dtype, op, (uint8_t *)out + at * elem_bytes, (const uint8_t *)acc + at * elem_bytes, nothing, elems, divisor);
    }
}

void pc_reduce_narrow(pcclDataType_t dtype, pcclRedOp_t op, void *out, const void *acc, size_t count,
                      uint64_t total_weight) {
    const uint64_t divisor = op == pcclAvg ? total_weight : 1;
    switch (dtype) {
    case pcclFloat16: narrow_f16(out, acc, count, divisor); break;
    case pcclBFloat16: narrow_bf16(out, acc, count, divisor); break;
    case pcclFloat: narrow_f32(out, acc, count, divisor); break;
    case pcclDouble: narrow_f64(out, acc, count, divisor); break;
    default: finish_integers(dtype, op, out, acc, count, divisor);
    }
}

void pc_reduce_scale(pcclDataType_t dtype, void *acc, size_t count, double factor) {
    if (dtype == pcclDouble) {
        any_f64 *values = acc;
        for (size_t i = 0; i < count; i++) values[i] *= factor;
        return;
    }
    assert(dtype == pcclFloat);
    any_f32 *values = acc;
    for (size_t i = 0; i < count; i++) values[i] *= (float)factor;
}
