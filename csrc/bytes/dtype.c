/*
 * The tables behind element types and reduction operators. The enumerators index them, so a number from the wire is
 * checked with pc_dtype_valid or pc_redop_valid before it becomes one. Pure and constant; safe from every thread.
 */
#include "bytes/dtype.h"

static const struct {
    const char *name;
    size_t len_bytes;
} dtypes[PC_DTYPE_COUNT] = {
    [pcclUint8] = {"uint8", 1},     [pcclInt8] = {"int8", 1},         [pcclInt16] = {"int16", 2},
    [pcclUint16] = {"uint16", 2},   [pcclUint32] = {"uint32", 4},     [pcclInt32] = {"int32", 4},
    [pcclUint64] = {"uint64", 8},   [pcclInt64] = {"int64", 8},       [pcclFloat16] = {"float16", 2},
    [pcclBFloat16] = {"bfloat16", 2}, [pcclFloat] = {"float32", 4},   [pcclDouble] = {"float64", 8},
};

static const char *const redop_names[PC_REDOP_COUNT] = {
    [pcclSum] = "sum", [pcclAvg] = "avg", [pcclProd] = "prod", [pcclMax] = "max", [pcclMin] = "min",
    [pcclBand] = "band", [pcclBor] = "bor", [pcclBxor] = "bxor",
};

bool pc_dtype_valid(uint32_t dtype) {
    return dtype < PC_DTYPE_COUNT;
}

bool pc_redop_valid(uint32_t redop) {
    return redop < PC_REDOP_COUNT;
}

bool pc_dtype_is_integer(pcclDataType_t dtype) {
    return pc_dtype_valid((uint32_t)dtype) && dtype < pcclFloat16;
}

bool pc_redop_fits(pcclRedOp_t redop, pcclDataType_t dtype) {
    return pc_redop_valid((uint32_t)redop) && (redop < pcclBand || pc_dtype_is_integer(dtype));
}

size_t pc_dtype_bytes(pcclDataType_t dtype) {
    return pc_dtype_valid((uint32_t)dtype) ? dtypes[dtype].len_bytes : 0;
}

const char *pc_dtype_name(pcclDataType_t dtype) {
    return pc_dtype_valid((uint32_t)dtype) ? dtypes[dtype].name : "unknown";
}

const char *pc_redop_name(pcclRedOp_t redop) {
    return pc_redop_valid((uint32_t)redop) ? redop_names[redop] : "unknown";
}

pcclDataType_t pc_dtype_accumulator(pcclDataType_t dtype) {
    return dtype == pcclFloat16 || dtype == pcclBFloat16 ? pcclFloat : dtype;
}
