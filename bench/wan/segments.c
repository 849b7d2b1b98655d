/*
 * The kernel leaves it to a device to cut TCP's output into segments and to fill in checksums, and takes such frames back
 * on the receiving side: one read, one write and one walk through TCP for many packets. The emulator decides about each
 * packet of a frame by itself; where it drops some, it cuts as the hardware would: sequence number and identification
 * count on, CWR goes with the first segment, PSH and FIN with the last. The TCP checksum stays "to be filled in", which
 * means that its field holds the sum of the pseudo header, so that a new length needs a new sum.
 */
#include "segments.h"

#include <linux/virtio_net.h>
#include <string.h>

enum { IP_TOTAL = 2, IP_ID = 4, IP_PROTOCOL = 9, IP_CHECKSUM = 10, IP_ADDRESSES = 12, IP_HEADER_BYTES = 20 };
enum { TCP_SEQUENCE = 4, TCP_OFFSET = 12, TCP_FLAGS = 13, TCP_CHECKSUM = 16, TCP_HEADER_BYTES = 20 };
enum { PROTOCOL_TCP = 6, FLAG_FIN = 1, FLAG_PSH = 8, FLAG_CWR = 128 };

static uint32_t get16(const uint8_t *at) {
    return (uint32_t)at[0] << 8 | at[1];
}

static void put16(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static uint32_t get32(const uint8_t *at) {
    return get16(at) << 16 | get16(at + 2);
}

static void put32(uint8_t *at, uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value & 0xffff);
}

/* The Internet checksum's sum over an even number of bytes, folded to 16 bits. */
static uint32_t folded_sum(const uint8_t *bytes, uint32_t len_bytes, uint32_t sum) {
    for (uint32_t i = 0; i + 1 < len_bytes; i += 2) sum += get16(bytes + i);
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

bool wan_segments_parse(const uint8_t *frame, uint32_t len_bytes, struct wan_segments *segments) {
    if (len_bytes < WAN_FRAME_HEADER_BYTES + IP_HEADER_BYTES) return false;
    struct virtio_net_hdr offload;
    memcpy(&offload, frame, sizeof offload);
    const uint8_t *ip = frame + WAN_FRAME_HEADER_BYTES;
    const uint32_t ip_bytes = len_bytes - WAN_FRAME_HEADER_BYTES;
    if (ip[0] >> 4 != 4) return false;
    *segments = (struct wan_segments){.count = 1, .header_bytes = ip_bytes};
    if (offload.gso_type == VIRTIO_NET_HDR_GSO_NONE) return true;

    const uint32_t ip_header_bytes = (ip[0] & 15u) * 4;
    if (offload.gso_type != VIRTIO_NET_HDR_GSO_TCPV4 || offload.gso_size == 0 || ip[IP_PROTOCOL] != PROTOCOL_TCP ||
        ip_header_bytes < IP_HEADER_BYTES || ip_bytes < ip_header_bytes + TCP_HEADER_BYTES) {
        return false;
    }
    const uint32_t tcp_header_bytes = (uint32_t)(ip[ip_header_bytes + TCP_OFFSET] >> 4) * 4;
    segments->header_bytes = ip_header_bytes + tcp_header_bytes;
    if (tcp_header_bytes < TCP_HEADER_BYTES || ip_bytes <= segments->header_bytes) return false;
    segments->payload_bytes = ip_bytes - segments->header_bytes;
    segments->size = offload.gso_size;
    segments->count = (segments->payload_bytes + segments->size - 1) / segments->size;
    return segments->count <= WAN_SEGMENTS_MAX;
}

/* Where segment i begins in the payload; for i = count, where the payload ends. */
static uint32_t offset_of(const struct wan_segments *segments, uint32_t i) {
    return i == segments->count ? segments->payload_bytes : i * segments->size;
}

uint32_t wan_segments_wire_bytes(const struct wan_segments *segments, uint32_t i) {
    return segments->header_bytes + offset_of(segments, i + 1) - offset_of(segments, i);
}

uint32_t wan_segments_cut(const struct wan_segments *segments, const uint8_t *frame, uint32_t first, uint32_t count,
                          uint8_t *out) {
    const uint32_t from = offset_of(segments, first);
    const uint32_t payload_bytes = offset_of(segments, first + count) - from;
    const uint32_t all_headers_bytes = WAN_FRAME_HEADER_BYTES + segments->header_bytes;
    memcpy(out, frame, all_headers_bytes);
    memcpy(out + all_headers_bytes, frame + all_headers_bytes + from, payload_bytes);

    struct virtio_net_hdr offload;
    memcpy(&offload, frame, sizeof offload);
    if (count == 1) {
        offload.gso_type = VIRTIO_NET_HDR_GSO_NONE;
        offload.gso_size = 0;
    }
    memcpy(out, &offload, sizeof offload);

    uint8_t *ip = out + WAN_FRAME_HEADER_BYTES;
    const uint32_t ip_header_bytes = (ip[0] & 15u) * 4;
    put16(ip + IP_TOTAL, segments->header_bytes + payload_bytes);
    put16(ip + IP_ID, get16(ip + IP_ID) + first);
    put16(ip + IP_CHECKSUM, 0);
    put16(ip + IP_CHECKSUM, ~folded_sum(ip, ip_header_bytes, 0));

    uint8_t *tcp = ip + ip_header_bytes;
    put32(tcp + TCP_SEQUENCE, get32(tcp + TCP_SEQUENCE) + from);
    if (first != 0) tcp[TCP_FLAGS] = (uint8_t)(tcp[TCP_FLAGS] & ~FLAG_CWR);
    if (first + count != segments->count) tcp[TCP_FLAGS] = (uint8_t)(tcp[TCP_FLAGS] & ~(FLAG_PSH | FLAG_FIN));
    const uint32_t tcp_bytes = segments->header_bytes - ip_header_bytes + payload_bytes;
    put16(tcp + TCP_CHECKSUM, folded_sum(ip + IP_ADDRESSES, 8, PROTOCOL_TCP + tcp_bytes));
    return all_headers_bytes + payload_bytes;
}
