/*
 * Proofs through OpenSSL's EVP_MAC. Pure in effect: the context lives for one call, nothing is kept, any thread may
 * call. The parts are fed one after the other and never joined in memory. A failure of the library is reported and
 * decided on by the caller; no partial proof ever leaves this file.
 */
#include "math/auth.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <string.h>

#define SHA256_BYTES 32

static bool update_part(EVP_MAC_CTX *context, const struct pc_auth_part *part) {
    uint8_t length[8];
    for (size_t i = 0; i < sizeof length; i++) length[i] = (uint8_t)((uint64_t)part->len_bytes >> (8 * i));
    if (!EVP_MAC_update(context, length, sizeof length)) return false;
    return part->len_bytes == 0 || EVP_MAC_update(context, part->data, part->len_bytes);
}

static bool compute(EVP_MAC_CTX *context, const char *label, const struct pc_auth_part *parts, size_t part_count,
                    uint8_t mac[SHA256_BYTES]) {
    /* The label with its terminating 0, which ends it: no label is the beginning of another one's message. */
    if (!EVP_MAC_update(context, (const unsigned char *)label, strlen(label) + 1)) return false;
    for (size_t i = 0; i < part_count; i++)
        if (!update_part(context, &parts[i])) return false;
    size_t len_bytes = 0;
    return EVP_MAC_final(context, mac, &len_bytes, SHA256_BYTES) && len_bytes == SHA256_BYTES;
}

bool pc_auth_proof(const uint8_t *key, size_t key_len, const char *label, const struct pc_auth_part *parts,
                   size_t part_count, uint8_t proof[PC_PROOF_BYTES]) {
    static const uint8_t no_key = 0; /* a NULL key would mean "keep the last one" to the library */
    uint8_t mac[SHA256_BYTES] = {0};
    char digest[] = "SHA256";
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                                 OSSL_PARAM_construct_end()};
    bool done = false;
    memset(proof, 0, PC_PROOF_BYTES);
    if (part_count > PC_AUTH_PARTS_MAX) return false;
    EVP_MAC *hmac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *context = hmac != NULL ? EVP_MAC_CTX_new(hmac) : NULL;
    if (context == NULL) goto out;
    if (!EVP_MAC_init(context, key_len > 0 ? key : &no_key, key_len, params)) goto out;
    done = compute(context, label, parts, part_count, mac);
    if (done) memcpy(proof, mac, PC_PROOF_BYTES);
out:
    OPENSSL_cleanse(mac, sizeof mac);
    EVP_MAC_CTX_free(context);
    EVP_MAC_free(hmac);
    return done;
}

void pc_auth_prepare(void) {
    uint8_t unused[PC_PROOF_BYTES];
    (void)pc_auth_proof(NULL, 0, "", NULL, 0, unused);
}

bool pc_auth_equal(const uint8_t a[PC_PROOF_BYTES], const uint8_t b[PC_PROOF_BYTES]) {
    return CRYPTO_memcmp(a, b, PC_PROOF_BYTES) == 0;
}
