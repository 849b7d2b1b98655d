/*
 * K2, private to the kernels: how their loops are written so that the compilers make vector code of them, at each SIMD
 * level for itself.
 */
#ifndef PC_LOOPS_H
#define PC_LOOPS_H

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/*
 * Iteration i reads and writes element i only, also when out is one of the inputs. Without this word the compilers
 * check at run time for overlap, find it in every in-place call, and take their scalar loop.
 */
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* Elements in a caller's buffer: of any declared type, at any address. */
#define ANY __attribute__((aligned(1), may_alias))
typedef uint8_t any_u8 ANY;
typedef int8_t any_i8 ANY;
typedef uint16_t any_u16 ANY;
typedef int16_t any_i16 ANY;
typedef uint32_t any_u32 ANY;
typedef int32_t any_i32 ANY;
typedef uint64_t any_u64 ANY;
typedef int64_t any_i64 ANY;
typedef float any_f32 ANY;
typedef double any_f64 ANY;

#endif
