/*
 * K2, private to reduce.c: the loops of all reductions, once. Everything here is inlined into the entry functions of
 * reduce.c, and takes their SIMD target from there; the compiler makes vector code of each loop.
 *
 * Why the bits don't depend on the target: each element is computed on its own, by operations that IEEE 754 defines to
 * the bit. Only which NaN comes out of two is left open there (it follows the order in which the compiler happens to
 * place the operands, and the processor), so a NaN result is always replaced by the one quiet NaN with no payload.
 */
#ifndef PC_REDUCE_LOOPS_H
#define PC_REDUCE_LOOPS_H

#include "math/half.h"
#include "math/loops.h"
#include "pccl.h"

/*
 * apply_<type>(op, a, b, divisor): one element; op is a constant where it is called. Integers are added and multiplied
 * as the unsigned type wide, where wrapping is defined, and divided as the type quotient.
 *
 * A quotient in floating point, truncated, is exact when the dividend has fewer bits than the mantissa: if a / n isn't
 * whole it is at least 1 / n away from the next whole number, and rounding moves it by less than that. A divisor that
 * is itself rounded is larger than any dividend of that type, and stays so. This makes vector code possible; 64-bit
 * integers have no wider type and divide one by one.
 */
#define DEFINE_INTEGER(name, type, wide, quotient)                                                                     \
    INLINE type apply_##name(pcclRedOp_t op, type a, type b, uint64_t divisor) {                                       \
        switch (op) {                                                                                                  \
        case pcclSum:                                                                                                  \
            return (type)((wide)a + (wide)b);                                                                          \
        case pcclAvg:                                                                                                  \
            return (type)((quotient)(type)((wide)a + (wide)b) / (quotient)divisor);                                    \
        case pcclProd:                                                                                                 \
            return (type)((wide)a * (wide)b);                                                                          \
        case pcclMax:                                                                                                  \
            return a < b ? b : a;                                                                                      \
        case pcclMin:                                                                                                  \
            return b < a ? b : a;                                                                                      \
        case pcclBand:                                                                                                 \
            return (type)(a & b);                                                                                      \
        case pcclBor:                                                                                                  \
            return (type)(a | b);                                                                                      \
        case pcclBxor:                                                                                                 \
            return (type)(a ^ b);                                                                                      \
        }                                                                                                              \
        return a;                                                                                                      \
    }

DEFINE_INTEGER(u8, uint8_t, uint32_t, float)
DEFINE_INTEGER(i8, int8_t, uint32_t, float)
DEFINE_INTEGER(u16, uint16_t, uint32_t, float)
DEFINE_INTEGER(i16, int16_t, uint32_t, float)
DEFINE_INTEGER(u32, uint32_t, uint32_t, double)
DEFINE_INTEGER(i32, int32_t, uint32_t, double)
DEFINE_INTEGER(u64, uint64_t, uint64_t, uint64_t)
DEFINE_INTEGER(i64, int64_t, uint64_t, int64_t)

/* The comparisons are the quiet ones, which the compilers may evaluate for all lanes. Equal operands give a. */
#define DEFINE_FLOAT(name, type)                                                                                       \
    INLINE type apply_##name(pcclRedOp_t op, type a, type b, uint64_t divisor) {                                       \
        switch (op) {                                                                                                  \
        case pcclSum:                                                                                                  \
            return a + b;                                                                                              \
        case pcclAvg:                                                                                                  \
            return (a + b) / (type)divisor;                                                                            \
        case pcclProd:                                                                                                 \
            return a * b;                                                                                              \
        case pcclMax:                                                                                                  \
            return __builtin_isless(a, b) || __builtin_isunordered(b, b) ? b : a;                                      \
        case pcclMin:                                                                                                  \
            return __builtin_isless(b, a) || __builtin_isunordered(b, b) ? b : a;                                      \
        case pcclBand:                                                                                                 \
        case pcclBor:                                                                                                  \
        case pcclBxor:                                                                                                 \
            break; /* pc_redop_fits: for integers */                                                                   \
        }                                                                                                              \
        return a;                                                                                                      \
    }

DEFINE_FLOAT(f32, float)
DEFINE_FLOAT(f64, double)

/*
 * How results are stored: with the one NaN. For float16 that comes after the narrowing, because a constant before it
 * is narrowed by the compiler at once, in a branch of its own.
 */
INLINE float store_f32(float value) {
    return __builtin_isunordered(value, value) ? __builtin_nanf("") : value;
}

INLINE double store_f64(double value) {
    return __builtin_isunordered(value, value) ? __builtin_nan("") : value;
}

INLINE uint16_t store_f16(float value) {
    uint16_t half = pc_half_narrow_f16(value);
    return (half & 0x7fffu) > 0x7c00u ? 0x7e00u : half;
}

INLINE uint16_t store_bf16(float value) {
    uint16_t half = pc_half_narrow_bf16(value);
    return (half & 0x7fffu) > 0x7f80u ? 0x7fc0u : half;
}

/* reduce_<name>: out[i] = store(acc[i] op load(own[i])); the types are those of one element of acc, own and out. */
#define DEFINE_REDUCE(name, acc_type, own_type, out_type, load, store)                                                 \
    INLINE void reduce_##name(pcclRedOp_t op, void *out, const void *acc, const void *own, size_t count,               \
                              uint64_t divisor) {                                                                      \
        any_##out_type *to = out;                                                                                      \
        const any_##acc_type *a = acc;                                                                                 \
        const any_##own_type *b = own;                                                                                 \
        INDEPENDENT                                                                                                    \
        for (size_t i = 0; i < count; i++) to[i] = store(apply_##acc_type(op, a[i], load(b[i]), divisor));             \
    }

#define AS_IS(value) (value)
DEFINE_REDUCE(u8, u8, u8, u8, AS_IS, AS_IS)
DEFINE_REDUCE(i8, i8, i8, i8, AS_IS, AS_IS)
DEFINE_REDUCE(u16, u16, u16, u16, AS_IS, AS_IS)
DEFINE_REDUCE(i16, i16, i16, i16, AS_IS, AS_IS)
DEFINE_REDUCE(u32, u32, u32, u32, AS_IS, AS_IS)
DEFINE_REDUCE(i32, i32, i32, i32, AS_IS, AS_IS)
DEFINE_REDUCE(u64, u64, u64, u64, AS_IS, AS_IS)
DEFINE_REDUCE(i64, i64, i64, i64, AS_IS, AS_IS)
DEFINE_REDUCE(f32, f32, f32, f32, AS_IS, store_f32)
DEFINE_REDUCE(f64, f64, f64, f64, AS_IS, store_f64)
DEFINE_REDUCE(f16_partial, f32, u16, f32, pc_half_widen_f16, store_f32)
DEFINE_REDUCE(bf16_partial, f32, u16, f32, pc_half_widen_bf16, store_f32)
DEFINE_REDUCE(f16_final, f32, u16, u16, pc_half_widen_f16, store_f16)
DEFINE_REDUCE(bf16_final, f32, u16, u16, pc_half_widen_bf16, store_bf16)

/* What one call computes. partial: the result stays in the accumulator's type. */
struct reduction {
    pcclDataType_t dtype;
    pcclRedOp_t op;
    bool partial;
    uint64_t divisor;
};

/* One loop per operator, each with the operator as a constant. */
#define REDUCE_BY_OP(name)                                                                                             \
    do {                                                                                                               \
        switch (r.op) {                                                                                                \
        case pcclSum:                                                                                                  \
            reduce_##name(pcclSum, out, acc, own, count, 1);                                                           \
            break;                                                                                                     \
        case pcclAvg:                                                                                                  \
            reduce_##name(pcclAvg, out, acc, own, count, r.divisor);                                                   \
            break;                                                                                                     \
        case pcclProd:                                                                                                 \
            reduce_##name(pcclProd, out, acc, own, count, 1);                                                          \
            break;                                                                                                     \
        case pcclMax:                                                                                                  \
            reduce_##name(pcclMax, out, acc, own, count, 1);                                                           \
            break;                                                                                                     \
        case pcclMin:                                                                                                  \
            reduce_##name(pcclMin, out, acc, own, count, 1);                                                           \
            break;                                                                                                     \
        case pcclBand:                                                                                                 \
            reduce_##name(pcclBand, out, acc, own, count, 1);                                                          \
            break;                                                                                                     \
        case pcclBor:                                                                                                  \
            reduce_##name(pcclBor, out, acc, own, count, 1);                                                           \
            break;                                                                                                     \
        case pcclBxor:                                                                                                 \
            reduce_##name(pcclBxor, out, acc, own, count, 1);                                                          \
            break;                                                                                                     \
        }                                                                                                              \
    } while (0)

INLINE void reduce_any(struct reduction r, void *out, const void *acc, const void *own, size_t count) {
    switch (r.dtype) {
    case pcclUint8:
        REDUCE_BY_OP(u8);
        break;
    case pcclInt8:
        REDUCE_BY_OP(i8);
        break;
    case pcclInt16:
        REDUCE_BY_OP(i16);
        break;
    case pcclUint16:
        REDUCE_BY_OP(u16);
        break;
    case pcclUint32:
        REDUCE_BY_OP(u32);
        break;
    case pcclInt32:
        REDUCE_BY_OP(i32);
        break;
    case pcclUint64:
        REDUCE_BY_OP(u64);
        break;
    case pcclInt64:
        REDUCE_BY_OP(i64);
        break;
    case pcclFloat16:
        if (r.partial)
            REDUCE_BY_OP(f16_partial);
        else
            REDUCE_BY_OP(f16_final);
        break;
    case pcclBFloat16:
        if (r.partial)
            REDUCE_BY_OP(bf16_partial);
        else
            REDUCE_BY_OP(bf16_final);
        break;
    case pcclFloat:
        REDUCE_BY_OP(f32);
        break;
    case pcclDouble:
        REDUCE_BY_OP(f64);
        break;
    }
}

INLINE void widen_f16(any_f32 *acc, const any_u16 *own, size_t count) {
    INDEPENDENT
    for (size_t i = 0; i < count; i++) acc[i] = pc_half_widen_f16(own[i]);
}

INLINE void widen_bf16(any_f32 *acc, const any_u16 *own, size_t count) {
    INDEPENDENT
    for (size_t i = 0; i < count; i++) acc[i] = pc_half_widen_bf16(own[i]);
}

/* narrow_<name>: out[i] = store(acc[i] / divisor). A divisor of 1 changes no bit. */
#define DEFINE_NARROW(name, acc_type, out_type, store)                                                                 \
    INLINE void narrow_##name(any_##out_type *out, const any_##acc_type *acc, size_t count, uint64_t divisor) {        \
        INDEPENDENT                                                                                                    \
        for (size_t i = 0; i < count; i++) out[i] = store(acc[i] / (any_##acc_type)divisor);                           \
    }

DEFINE_NARROW(f16, f32, u16, store_f16)
DEFINE_NARROW(bf16, f32, u16, store_bf16)
DEFINE_NARROW(f32, f32, f32, store_f32)
DEFINE_NARROW(f64, f64, f64, store_f64)

#endif
