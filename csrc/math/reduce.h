/*
 * K2: reduction kernels, pure. Results are the same bits at every SIMD level and on every processor: no contraction, no
 * reassociation; each element is computed on its own, and a NaN that an operation returns is always the positive quiet
 * one without payload. min and max follow NumPy's minimum and maximum (a NaN on either side gives NaN); of two zeros
 * they return the accumulated one. Integers wrap. No kernel needs any alignment. out may equal acc or own exactly where
 * the types are the same; no other overlap is allowed.
 */
#ifndef PC_REDUCE_H
#define PC_REDUCE_H

#include "pccl.h"

/*
 * SIMD level of this process: 0 portable, 1 AVX2, 2 AVX-512. Lowering it is for tests, a negative level gives back the
 * machine's best; returns the level in force.
 */
int pc_reduce_level(void);
int pc_reduce_force_level(int level);

/*
 * acc[i] = acc[i] op own[i] for count elements. own has type dtype, acc has type pc_dtype_accumulator(dtype). pcclAvg
 * adds. The order of operands is fixed: accumulated first, own second.
 */
void pc_reduce_accumulate(pcclDataType_t dtype, pcclRedOp_t op, void *acc, const void *own, size_t count);

/*
 * out[i] = finish(acc[i] op own[i]) in dtype: rounded once for the 16-bit floats; for pcclAvg divided by total_weight
 * (integers truncate toward zero, floats divide in the accumulator's type). out may equal own.
 */
void pc_reduce_finish(pcclDataType_t dtype, pcclRedOp_t op, void *out, const void *acc, const void *own, size_t count,
                      uint64_t total_weight);

/* out[i] = finish(acc[i]): the end of a result that has a single operand, or whose last one was accumulated. */
void pc_reduce_narrow(pcclDataType_t dtype, pcclRedOp_t op, void *out, const void *acc, size_t count,
                      uint64_t total_weight);

/* acc[i] *= factor, in dtype, which is float32 or float64. */
void pc_reduce_scale(pcclDataType_t dtype, void *acc, size_t count, double factor);

/* acc[i] = own[i], converted to the accumulator's type: the start of a partial result. */
void pc_reduce_widen(pcclDataType_t dtype, void *acc, const void *own, size_t count);

#endif
