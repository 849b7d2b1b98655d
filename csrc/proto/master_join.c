/*
 * Joining: handshake, dial-back, introductions, link reports, admission. A newcomer opens its links while the run goes
 * on; a joint update_topology admits, in order of registration, those that have every link of the list they join.
 */
#include "base/checked.h"
#include "base/log.h"
#include "proto/master_state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Handshake ----------------------------------------------------------------------------------------------------- */

static pc_status refuse_hello(struct pc_peer *peer, const char *what) {
    return pc_error_set(&peer->stream->error, pcclRefused, "%s", what);
}

static pc_status on_hello(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_hello *hello) {
    if (hello->version_min > PC_PROTOCOL_VERSION || hello->version_max < PC_PROTOCOL_VERSION) {
        return pc_error_set(&peer->stream->error, pcclRefused,
                            "the master speaks protocol version %u, the peer %u to %u: install the same release on both",
                            PC_PROTOCOL_VERSION, hello->version_min, hello->version_max);
    }
    peer->purpose = hello->purpose;
    memcpy(peer->client_nonce, hello->nonce, sizeof peer->client_nonce);
    master->config.random.fill(master->config.random.state, peer->nonce, sizeof peer->nonce);
    struct pc_msg_challenge challenge = {.version = PC_PROTOCOL_VERSION, .keyed = master->config.run_key_len > 0};
    memcpy(challenge.nonce, peer->nonce, sizeof challenge.nonce);
    const struct pc_auth_part parts[2] = {{peer->client_nonce, 16}, {peer->nonce, 16}};
    (void)pc_auth_proof(master->run_key, master->config.run_key_len, "pccl master 1", parts, 2, challenge.proof);
    peer->state = PC_PEER_AUTH;
    pc_master_tell(master, peer, PC_MSG_CHALLENGE, &challenge);
    return pcclSuccess;
}

static bool proved(struct pc_master *master, const struct pc_peer *peer, const struct pc_msg_auth *auth) {
    const struct pc_auth_part parts[2] = {{peer->client_nonce, 16}, {peer->nonce, 16}};
    uint8_t proof[PC_PROOF_BYTES];
    (void)pc_auth_proof(master->run_key, master->config.run_key_len, "pccl peer 1", parts, 2, proof);
    return pc_auth_equal(proof, auth->proof);
}

/* Two lives of one process never run side by side: an identity that is a member's is refused with its address. */
static const struct pc_peer *same_incarnation(struct pc_master *master, const struct pc_peer *newcomer) {
    PC_EACH_PEER(master, peer) {
        if (peer != newcomer && memcmp(peer->incarnation, newcomer->incarnation, sizeof peer->incarnation) == 0) {
            return peer;
        }
    }
    return NULL;
}

static pc_status on_auth(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_auth *auth,
                         uint64_t now_ns) {
    if (!proved(master, peer, auth)) return refuse_hello(peer, "the run key of the peer is not the master's");
    if (peer->purpose == PC_PURPOSE_STATUS) {
        peer->state = PC_PEER_STATUS;
        return pcclSuccess;
    }
    memcpy(peer->incarnation, auth->incarnation, sizeof peer->incarnation);
    const struct pc_peer *twin = same_incarnation(master, peer);
    if (twin != NULL) {
        return pc_error_set(&peer->stream->error, pcclRefused, "a peer at %s has the same identity", twin->address_text);
    }
    if (auth->addresses.count == 0 || auth->addresses.count > PC_ADDRESSES_MAX) {
        return refuse_hello(peer, "a peer must advertise between 1 and 16 addresses");
    }
    peer->group = auth->group;
    peer->stripes = auth->stripes == 0 ? 1 : (uint32_t)pc_min_u64(auth->stripes, PC_STRIPES_MAX);
    peer->observer = auth->observer != 0;
    peer->pid = auth->pid;
    pc_text_copy(peer->host, sizeof peer->host, auth->host);
    peer->address_count = auth->addresses.count;
    memcpy(peer->addresses, auth->addresses.items, peer->address_count * sizeof peer->addresses[0]);
    pc_address_format(&peer->addresses[0], peer->address_text, sizeof peer->address_text);
    peer->state = PC_PEER_DIAL_BACK;
    peer->stream->meta_max = PC_META_MAX_CONTROL;
    peer->registered_ns = now_ns;
    peer->id = ++master->next_id;
    pc_list_remove(&peer->node);
    master->unproved_count--;
    pc_list_append(&master->peers, &peer->node);
    struct pc_action *action = pc_actions_add(&master->machine.actions, PC_ACTION_DIAL_BACK);
    action->id = peer->id;
    action->address_count = peer->address_count;
    memcpy(action->addresses, peer->addresses, sizeof peer->addresses);
    return pcclSuccess;
}

pc_status pc_master_handshake(struct pc_master *master, struct pc_peer *peer, uint8_t type, struct pc_cursor meta,
                              uint64_t now_ns) {
    union {
        struct pc_msg_hello hello;
        struct pc_msg_auth auth;
        uint8_t room[PC_MESSAGE_STRUCT_MAX];
    } message;
    const struct pc_message_info *info = pc_message_info(type);
    PC_TRY(pc_schema_decode(info->schema, meta, &master->arena, &message));
    if (peer->state == PC_PEER_HELLO && type == PC_MSG_HELLO) return on_hello(master, peer, &message.hello);
    if (peer->state == PC_PEER_AUTH && type == PC_MSG_AUTH) return on_auth(master, peer, &message.auth, now_ns);
    const bool may_ask = peer->state == PC_PEER_STATUS ||
                         (peer->state == PC_PEER_AUTH && peer->purpose == PC_PURPOSE_STATUS);
    if (type == PC_MSG_STATUS && may_ask) {
        if (peer->state == PC_PEER_AUTH && master->config.run_key_len > 0) {
            return refuse_hello(peer, "the master answers only those that have its run key");
        }
        pc_master_status(master, peer, now_ns);
        return pcclSuccess;
    }
    return pc_error_set(&peer->stream->error, pcclProtocolError, "%s is not expected here", info->schema->name);
}

/* Pairs --------------------------------------------------------------------------------------------------------- */

struct pc_pair *pc_master_pair(struct pc_master *master, uint64_t a, uint64_t b, bool create) {
    const uint64_t low = pc_min_u64(a, b), high = pc_max_u64(a, b);
    for (size_t i = 0; i < master->pair_count; i++) {
        struct pc_pair *pair = &master->pairs[i];
        if (pair->low == low && pair->high == high) return pair;
    }
    void *items = master->pairs;
    if (!create || !pc_grow(&items, &master->pair_capacity, master->pair_count + 1, sizeof *master->pairs)) return NULL;
    master->pairs = items;
    struct pc_pair *pair = &master->pairs[master->pair_count++];
    *pair = (struct pc_pair){.low = low, .high = high};
    return pair;
}

static void introduce_to(struct pc_master *master, struct pc_peer *to, const struct pc_peer *other,
                         const struct pc_pair *pair) {
    struct pc_peer_intro intro = {
        .id = other->id,
        .group = other->group,
        .generation = pair->generation,
        .stripes = other->stripes,
        .dial = to->id == pair->high,
    };
    uint8_t words[20];
    pc_bytes_put(words, pair->low, 8);
    pc_bytes_put(words + 8, pair->high, 8);
    pc_bytes_put(words + 16, pair->generation, 4);
    const struct pc_auth_part part = {words, sizeof words};
    (void)pc_auth_proof(master->secret, sizeof master->secret, "pccl pair token 1", &part, 1, intro.token);
    struct pc_address addresses[PC_ADDRESSES_MAX];
    memcpy(addresses, other->addresses, sizeof addresses);
    intro.addresses = (struct pc_array){addresses, other->address_count};
    const struct pc_msg_peers message = {{&intro, 1}};
    pc_master_tell(master, to, PC_MSG_PEERS, &message);
}

void pc_master_introduce(struct pc_master *master, struct pc_pair *pair) {
    struct pc_peer *low = pc_master_find(master, pair->low), *high = pc_master_find(master, pair->high);
    if (low == NULL || high == NULL) return;
    pair->up = pair->down = 0;
    pair->down_ns = 0;
    /* The one that answers first, so that it often knows of the hello before it comes. */
    introduce_to(master, low, high, pair);
    introduce_to(master, high, low, pair);
}

void pc_master_forget_pairs(struct pc_master *master, uint64_t id) {
    for (size_t i = 0; i < master->pair_count;) {
        struct pc_pair *pair = &master->pairs[i];
        if (pair->low != id && pair->high != id) {
            i++;
            continue;
        }
        struct pc_peer *other = pc_master_find(master, pair->low == id ? pair->high : pair->low);
        struct pc_peer_intro gone = {.id = id};
        const struct pc_msg_peers message = {{&gone, 1}};
        if (other != NULL && other->state != PC_PEER_GONE) pc_master_tell(master, other, PC_MSG_PEERS, &message);
        *pair = master->pairs[--master->pair_count];
    }
}

static uint8_t end_bit(const struct pc_pair *pair, uint64_t id) {
    return pair->low == id ? 1 : 2;
}

void pc_master_link_up(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_link_up *up) {
    struct pc_pair *pair = pc_master_pair(master, peer->id, up->id, false);
    if (pair == NULL || pair->generation != up->generation) return;
    pair->up |= end_bit(pair, peer->id);
    if (up->rtt_us > 0) pair->measured_us = up->rtt_us;
    if (pair->rtt_us == 0) pair->rtt_us = pair->measured_us;
    if (up->bytes_per_ms > 0) pair->measured_rate[peer->id == pair->low ? 0 : 1] = up->bytes_per_ms;
    pair->down &= (uint8_t)~end_bit(pair, peer->id);
    if (pair->down == 0) pair->down_ns = 0;
}

static bool both_members(struct pc_master *master, const struct pc_pair *pair) {
    const struct pc_peer *low = pc_master_find(master, pair->low), *high = pc_master_find(master, pair->high);
    return low != NULL && high != NULL && low->state == PC_PEER_MEMBER && high->state == PC_PEER_MEMBER;
}

void pc_master_link_down(struct pc_master *master, struct pc_peer *peer, const struct pc_msg_link_down *down,
                         uint64_t now_ns) {
    struct pc_pair *pair = pc_master_pair(master, peer->id, down->id, false);
    struct pc_peer *other = pc_master_find(master, down->id);
    if (pair == NULL || other == NULL || pair->generation != down->generation || pair->renew) return;
    pc_error error;
    pc_error_from_wire(&down->error, &error);
    /* Who has cut off the other end knows why; that one has only seen it. */
    if (pair->down == 0 || pair->error.code != pcclProtocolError) pair->error = error;
    if (!both_members(master, pair)) {
        /* Of a newcomer: what was never up is dialed again by itself; what one end had up needs new proofs. */
        (void)snprintf(peer->unreached, sizeof peer->unreached, "%s", other->address_text);
        if (pair->up == 0) return;
        pair->generation++;
        pc_master_introduce(master, pair);
        return;
    }
    if (pair->down == 0) pair->down_ns = now_ns;
    pair->down |= end_bit(pair, peer->id);
    if (other->stream == NULL && other->state == PC_PEER_MEMBER) {
        const pc_error why = other->why;
        pc_master_remove(master, other, &why, false, now_ns);
    } else if (pair->down == 3) {
        pc_master_pair_failed(master, pair, now_ns);
    }
}

void pc_master_pair_failed(struct pc_master *master, struct pc_pair *pair, uint64_t now_ns) {
    struct pc_peer *low = pc_master_find(master, pair->low), *high = pc_master_find(master, pair->high);
    if (low == NULL || high == NULL) return;
    if (pair->failed_ns != 0 && now_ns - pair->failed_ns > 60 * PC_NS_PER_S) pair->failures = 0;
    pair->failed_ns = now_ns;
    pair->failures++;
    pair->generation++;
    pair->up = pair->down = 0;
    pair->down_ns = 0;
    pc_error cause = {.peer_id = high->id, .last_heard_ms = pair->error.last_heard_ms, .sys_errno = pair->error.sys_errno};
    pc_text_copy(cause.peer_address, sizeof cause.peer_address, pc_text_of(high->address_text));
    pc_error_set(&cause, pcclRankConnectionLost, "the link between peer %llu (%s) and peer %llu (%s) was lost: %s",
                 (unsigned long long)low->id, low->address_text, (unsigned long long)high->id, high->address_text,
                 pair->error.message);
    pc_error_hint(&cause, "both ends are alive; the link is made anew, retry the call");
    struct pc_group *group = pc_master_group(master, low->group, false);
    if (high->young || low->young) {
        pc_master_remove(master, high->young ? high : low, &cause, true, now_ns);
        return;
    }
    pair->bad = pair->failures > 1;
    pair->renew = !pair->bad;
    if (low->group == high->group && group != NULL) {
        if (group->sync_id != 0) pc_master_sync_fail(master, group, &cause);
        pc_master_freeze(master, low, high, &cause, now_ns);
    } else if (pair->renew) {
        pair->renew = false;
        pc_master_introduce(master, pair);
    }
}

/* Admission ----------------------------------------------------------------------------------------------------- */

static bool linked_to_all(struct pc_master *master, const struct pc_peer *newcomer, const uint64_t *list, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const struct pc_pair *pair = pc_master_pair(master, newcomer->id, list[i], false);
        if (pair == NULL || pair->up != 3) return false;
    }
    return true;
}

/* The list of the next epoch, and how many of it are new. Grows in order of registration. */
static uint32_t propose(struct pc_master *master, bool admit) {
    uint32_t total = 0, count = 0, fresh = 0;
    PC_EACH_PEER(master, peer) total++;
    uint64_t *list = pc_arena_alloc(&master->arena, total, sizeof *list);
    if (list == NULL) return 0;
    PC_EACH_PEER(master, peer) {
        if (peer->state == PC_PEER_MEMBER) list[count++] = peer->id;
    }
    PC_EACH_PEER(master, peer) {
        if (peer->state != PC_PEER_PENDING || !linked_to_all(master, peer, list, count)) continue;
        if (admit && pc_master_group(master, peer->group, true) == NULL) continue;
        list[count++] = peer->id;
        fresh++;
        if (!admit) continue;
        peer->state = PC_PEER_MEMBER;
        peer->young = true;
        peer->standing = false;
    }
    return fresh;
}

bool pc_master_anyone_admissible(struct pc_master *master) {
    return propose(master, false) > 0;
}

bool pc_master_admit(struct pc_master *master) {
    return propose(master, true) > 0;
}

void pc_master_dialed_back(struct pc_master *master, uint64_t id, int sys_errno, uint64_t now_ns) {
    struct pc_peer *peer = pc_master_find(master, id);
    if (peer == NULL || peer->state != PC_PEER_DIAL_BACK) return;
    if (sys_errno != 0) {
        pc_error why = {.sys_errno = sys_errno};
        pc_text_copy(why.peer_address, sizeof why.peer_address, pc_text_of(peer->address_text));
        if (sys_errno == EMFILE || sys_errno == ENFILE || sys_errno == ENOMEM || sys_errno == ENOBUFS) {
            pc_error_set(&why, pcclRefused, "the master lacks the means to take another peer: %s", strerror(sys_errno));
            pc_error_hint(&why, "this peer is not at fault: raise the limits of the master's process (ulimit -n)");
        } else {
            pc_error_set(&why, pcclRefused, "inbound TCP to %s is not reachable from the master: %s", peer->address_text,
                         strerror(sys_errno));
            pc_error_hint(&why, "open the port, or set PCCL_ADVERTISE to an address at which other hosts reach this one");
        }
        pc_master_refuse(master, peer, &why);
        return;
    }
    struct pc_msg_welcome welcome = {
        .id = peer->id,
        .incarnation = master->config.incarnation,
        .dead_timeout_ms = (uint32_t)(master->config.dead_timeout_ns / PC_NS_PER_MS),
        .heartbeat_ms = (uint32_t)pc_min_u64(1000, master->config.dead_timeout_ns / PC_NS_PER_MS / 5),
    };
    memcpy(welcome.run, master->config.run, sizeof welcome.run);
    pc_master_tell(master, peer, PC_MSG_WELCOME, &welcome);
    peer->state = PC_PEER_PENDING;
    peer->registered_ns = now_ns;
    PC_EACH_PEER(master, other) {
        if (other == peer || (other->state != PC_PEER_PENDING && other->state != PC_PEER_MEMBER)) continue;
        struct pc_pair *pair = pc_master_pair(master, peer->id, other->id, true);
        if (pair != NULL) pc_master_introduce(master, pair);
    }
    pc_master_evaluate(master, now_ns);
    pc_arena_reset(&master->arena);
}

void pc_master_join_tick(struct pc_master *master, uint64_t now_ns) {
    PC_EACH_PEER(master, peer) {
        const bool waiting = peer->state == PC_PEER_PENDING || peer->state == PC_PEER_DIAL_BACK;
        if (!waiting || now_ns - peer->registered_ns <= master->config.join_timeout_ns) continue;
        pc_error why = {0};
        const char *unreached = peer->unreached[0] != '\0' ? peer->unreached : "none; no member called update_topology";
        pc_error_set(&why, pcclRefused, "pending for longer than the join deadline; addresses not reached: %s", unreached);
        pc_master_refuse(master, peer, &why);
    }
    for (size_t i = 0; i < master->pair_count; i++) {
        struct pc_pair *pair = &master->pairs[i];
        if (pair->down_ns == 0 || now_ns - pair->down_ns < PC_CORROBORATE_MS * PC_NS_PER_MS) continue;
        pc_master_pair_failed(master, pair, now_ns);
    }
}
