/*
 * The emulated network: nodes with an access link each, and a path for every directed pair of them. Pure: the time is an
 * argument, frames are slots of a pool, and chance comes from the seed. A frame is one packet or several that follow each
 * other (segments.h); rates, queues, losses and all counters are those of packets.
 */
#ifndef WAN_NETWORK_H
#define WAN_NETWORK_H

#include "packet_pool.h"

enum { WAN_NODES_MAX = 16 };

/* A link that sends one byte after another and drops what doesn't fit into its queue. */
struct wan_shaper {
    uint64_t rate_bps; /* 0: as fast as you like, nothing waits */
    uint64_t queue_ns; /* what may wait, as the time that it takes to send */
    uint64_t idle_ns;  /* when it will have sent all that it has accepted */
    uint64_t dropped;
};

struct wan_path {
    struct wan_shaper shaper;
    struct wan_queue queue; /* in flight */
    uint64_t delay_ns;
    double loss;
    uint64_t chance; /* state of its own generator, so that other traffic doesn't move its losses */
    uint64_t last_due_ns;
    uint64_t offered, offered_bytes, lost;
};

struct wan_node {
    uint8_t address[4];
    struct wan_shaper egress, ingress;
    struct wan_queue inbox; /* passed the ingress link, due when its last bit has */
    uint64_t delivered, delivered_bytes;
};

struct wan_network {
    struct wan_pool *pool;
    uint32_t node_count;
    struct wan_node nodes[WAN_NODES_MAX];
    struct wan_path paths[WAN_NODES_MAX][WAN_NODES_MAX]; /* [from][to] */
    uint64_t arrivals_ns[WAN_NODES_MAX][WAN_NODES_MAX];  /* [to][from]: when the next frame in flight arrives */
    uint64_t unroutable;
    uint64_t overflow; /* packets that found no free slot */
};

void wan_shaper_set(struct wan_shaper *shaper, uint64_t rate_bps, uint64_t queue_bytes);

void wan_network_init(struct wan_network *network, struct wan_pool *pool, uint32_t node_count, uint64_t seed);

/* Node `from` sends the frame. The network owns it from now on. */
void wan_network_send(struct wan_network *network, uint32_t from, uint32_t frame, uint64_t now_ns);

/* Takes what has crossed its path by now to the receivers' ingress links, in the order of arrival. */
void wan_network_advance(struct wan_network *network, uint64_t now_ns);

/* The next frame for `node` that is due, now the caller's, or WAN_NO_PACKET. After wan_network_advance(now). */
uint32_t wan_network_receive(struct wan_network *network, uint32_t node, uint64_t now_ns);

/* When there is something to do next; UINT64_MAX: nothing is under way. */
uint64_t wan_network_next_ns(const struct wan_network *network);

#endif
