/*
 * K2: the frame, the one unit on every connection: a fixed header, a meta part (a schema-described message) and a bulk
 * part (payload that goes straight to or from a buffer).
 *
 *   offset  0  u32 cookie        PC_FRAME_MAGIC on control connections and before a link is proved, else the link's
 *           4  u8  type          enum pc_message_type
 *           5  u8  flags         PC_FRAME_BULK_DIGEST: bulk_digest is set
 *           6  u16 reserved      0
 *           8  u32 meta_len
 *          12  u32 bulk_len
 *          16  u64 bulk_digest   XXH3-64 of the bulk part
 *          24  u64 head_digest   XXH3-64 of header (this field as 0) and meta part
 */
#ifndef PC_FRAME_H
#define PC_FRAME_H

#include "base/status.h"

#define PC_FRAME_BYTES 32u
#define PC_FRAME_MAGIC 0x4c434350u /* "PCCL" as bytes */
#define PC_FRAME_BULK_DIGEST 0x01u

struct pc_frame {
    uint32_t cookie;
    uint8_t type, flags;
    uint32_t meta_len, bulk_len;
    uint64_t bulk_digest;
};

/* head_and_meta: PC_FRAME_BYTES of room, and after them frame->meta_len bytes of meta already in place. */
void pc_frame_seal(const struct pc_frame *frame, uint8_t *head_and_meta);
/* The header's fields. pcclProtocolError if reserved bits are set; the digest is not checked. */
pc_status pc_frame_open(const uint8_t head[PC_FRAME_BYTES], struct pc_frame *frame);
/* Whether the digest over header and meta holds. The bytes are as before afterwards. */
bool pc_frame_intact(uint8_t *head_and_meta, uint32_t meta_len);

#endif
