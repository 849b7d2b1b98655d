/* The frame header: seal, open and check, side by side. Pure. */
#include "wire/frame.h"

#include "bytes/cursor.h"
#include "math/digest.h"

enum { DIGESTED_BYTES = 24 };

/* Header and meta are adjacent but for the digest field itself, which counts as zero. */
static uint64_t head_digest(uint8_t *head_and_meta, uint32_t meta_len) {
    pc_bytes_put(head_and_meta + DIGESTED_BYTES, 0, 8);
    return pc_digest64(head_and_meta, (size_t)PC_FRAME_BYTES + meta_len);
}

void pc_frame_seal(const struct pc_frame *frame, uint8_t *head_and_meta) {
    pc_bytes_put(head_and_meta, frame->cookie, 4);
    head_and_meta[4] = frame->type;
    head_and_meta[5] = frame->flags;
    pc_bytes_put(head_and_meta + 6, 0, 2);
    pc_bytes_put(head_and_meta + 8, frame->meta_len, 4);
    pc_bytes_put(head_and_meta + 12, frame->bulk_len, 4);
    pc_bytes_put(head_and_meta + 16, frame->bulk_digest, 8);
    const uint64_t digest = head_digest(head_and_meta, frame->meta_len);
    pc_bytes_put(head_and_meta + DIGESTED_BYTES, digest, 8);
}

pc_status pc_frame_open(const uint8_t head[PC_FRAME_BYTES], struct pc_frame *frame) {
    frame->cookie = (uint32_t)pc_bytes_get(head, 4);
    frame->type = head[4];
    frame->flags = head[5];
    frame->meta_len = (uint32_t)pc_bytes_get(head + 8, 4);
    frame->bulk_len = (uint32_t)pc_bytes_get(head + 12, 4);
    frame->bulk_digest = pc_bytes_get(head + 16, 8);
    const bool reserved_clear = head[6] == 0 && head[7] == 0 && (frame->flags & ~PC_FRAME_BULK_DIGEST) == 0;
    return reserved_clear ? pcclSuccess : pcclProtocolError;
}

bool pc_frame_intact(uint8_t *head_and_meta, uint32_t meta_len) {
    const uint64_t carried = pc_bytes_get(head_and_meta + DIGESTED_BYTES, 8);
    const uint64_t computed = head_digest(head_and_meta, meta_len);
    pc_bytes_put(head_and_meta + DIGESTED_BYTES, carried, 8);
    return carried == computed;
}
