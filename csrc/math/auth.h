/* K2: proofs of a shared secret: HMAC-SHA-256 (RFC 2104, FIPS 180-4) over labelled parts, cut to 128 bits. */
#ifndef PC_AUTH_H
#define PC_AUTH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PC_PROOF_BYTES 16
#define PC_AUTH_PARTS_MAX 8

struct pc_auth_part {
    const void *data;
    size_t len_bytes;
};

/*
 * proof = HMAC(key, label || 0 || each part with its length before it as 8 little-endian bytes), first 16 bytes.
 * Returns false when the library underneath fails or there are more than PC_AUTH_PARTS_MAX parts; then proof is zero.
 * key_len 0 is allowed and gives a proof that anyone can make.
 */
bool pc_auth_proof(const uint8_t *key, size_t key_len, const char *label, const struct pc_auth_part *parts,
                   size_t part_count, uint8_t proof[PC_PROOF_BYTES]);
/*
 * Before there are threads: the library underneath fetches what proofs need once, and never again waits for a lock that it
 * has alone. A child that was forked while another thread held one would wait for ever.
 */
void pc_auth_prepare(void);
/* Compares in constant time. */
bool pc_auth_equal(const uint8_t a[PC_PROOF_BYTES], const uint8_t b[PC_PROOF_BYTES]);

#endif
