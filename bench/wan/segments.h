/*
 * A frame as a TUN device gives and takes it: the header in which the kernel says what it left to the "hardware"
 * (virtio_net_hdr), and an IP packet, or several TCP segments that share one copy of their headers. Pure.
 */
#ifndef WAN_SEGMENTS_H
#define WAN_SEGMENTS_H

#include <stdbool.h>
#include <stdint.h>

enum { WAN_FRAME_HEADER_BYTES = 10, WAN_SEGMENTS_MAX = 64 };

struct wan_segments {
    uint32_t count;         /* 1 for all that isn't TCP in segments */
    uint32_t header_bytes;  /* of IP and TCP, in front of each segment's payload */
    uint32_t payload_bytes; /* of all segments */
    uint32_t size;          /* payload of every segment but the last */
};

/* False: no IPv4, inconsistent, or more than WAN_SEGMENTS_MAX. */
bool wan_segments_parse(const uint8_t *frame, uint32_t len_bytes, struct wan_segments *segments);

/* Of the i-th packet on the wire, its IP header included. */
uint32_t wan_segments_wire_bytes(const struct wan_segments *segments, uint32_t i);

/* Writes a frame of `count` segments from `first` on to `out`, which doesn't overlap; returns its length. */
uint32_t wan_segments_cut(const struct wan_segments *segments, const uint8_t *frame, uint32_t first, uint32_t count,
                          uint8_t *out);

#endif
