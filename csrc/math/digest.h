/* K2: XXH3 digests. 64 bits for frames, 128 for blocks of the shared state (big-endian canonical bytes). */
#ifndef PC_DIGEST_H
#define PC_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#define PC_DIGEST_BYTES 16
#define PC_STATE_BLOCK_BYTES ((size_t)4 << 20)

uint64_t pc_digest64(const void *data, size_t len_bytes);
void pc_digest128(const void *data, size_t len_bytes, uint8_t out[PC_DIGEST_BYTES]);

/* How many blocks of 4 MiB len_bytes make; 0 for 0. */
size_t pc_digest_block_count(size_t len_bytes);
/* Digest of each block into blocks (block_count * 16 bytes), and of all of these into tensor_out. */
void pc_digest_blocks(const void *data, size_t len_bytes, uint8_t *blocks, uint8_t tensor_out[PC_DIGEST_BYTES]);

#endif
