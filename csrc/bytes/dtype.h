/* K1: element types and reduction operators as the wire and the API number them. */
#ifndef PC_DTYPE_H
#define PC_DTYPE_H

#include "pccl.h"

#define PC_DTYPE_COUNT 12
#define PC_REDOP_COUNT 8

bool pc_dtype_valid(uint32_t dtype);
bool pc_redop_valid(uint32_t redop);
bool pc_dtype_is_integer(pcclDataType_t dtype);
/* Whether the operator is defined for the type: bitwise ones are for integers. */
bool pc_redop_fits(pcclRedOp_t redop, pcclDataType_t dtype);
/* Bytes of one element; 0 for an unknown dtype. */
size_t pc_dtype_bytes(pcclDataType_t dtype);
/* "float32", "bfloat16", ...; "sum", "avg", ... Never NULL. */
const char *pc_dtype_name(pcclDataType_t dtype);
const char *pc_redop_name(pcclRedOp_t redop);
/* The type in which partial results are kept and travel: float32 for the 16-bit floats, else the type itself. */
pcclDataType_t pc_dtype_accumulator(pcclDataType_t dtype);

#endif
