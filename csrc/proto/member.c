/*
 * A peer's machine: life, driver events, joint calls, timers. The contract is in member.h, the parts in member_state.h.
 * Every event ends in finish(), which sends what has gathered, so that several verdict reports share one message.
 */
#include "proto/member_state.h"

#include "base/checked.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

static struct pc_member *member_of(struct pc_machine *machine) {
    return (struct pc_member *)(void *)machine; /* its first member */
}

/* A step that failed during this event fails for its other operations too; once for those that were posted. */
static void spread_poison(struct pc_member *member) {
    for (struct pc_list *node = member->groups.next; node != &member->groups; node = node->next) {
        struct pc_member_group *group = PC_LIST_ENTRY(node, struct pc_member_group, node);
        if (group->step_poison.code != pcclSuccess) pc_member_poison_step(member, group, &group->step_poison);
    }
    member->poisoned = false;
}

static void finish(struct pc_member *member, uint64_t now_ns) {
    if (member->no_memory != NULL) {
        pc_error error = {0};
        pc_error_set(&error, pcclNoMemory, "%s", member->no_memory);
        member->no_memory = NULL;
        pc_member_lose(member, &error, false);
    }
    if (member->poisoned) spread_poison(member);
    if (!pc_list_empty(&member->offers)) pc_member_match_parked(member, now_ns);
    pc_member_flush_done(member);
    pc_arena_reset(&member->arena);
    if (member->control != NULL) pc_stream_wake(member->control, &member->machine.actions);
}

/* Streams ------------------------------------------------------------------------------------------------------- */

static pc_status on_frame(void *machine, struct pc_stream *stream, const struct pc_frame *frame,
                          struct pc_cursor meta) {
    struct pc_member *member = machine;
    if (frame->type == PC_MSG_HEARTBEAT) return pcclSuccess;
    if (stream->role == PC_ROLE_CONTROL) return pc_member_control_frame(member, frame, meta, stream->heard_ns);
    return pc_member_link_frame(member, stream, frame, meta, stream->heard_ns);
}

static pc_status on_bulk(void *machine, struct pc_stream *stream) {
    struct pc_member *member = machine;
    if (stream->sink.owner == &member->sync) return pc_member_sync_arrived(member, stream);
    if (stream->sink.owner == &member->probe) {
        pc_member_probe_arrived(member, stream, stream->heard_ns);
        return pcclSuccess;
    }
    return pc_member_data_arrived(stream, stream->heard_ns);
}

static void on_sent(void *machine, struct pc_stream *stream, struct pc_tx *tx) {
    struct pc_member *member = machine;
    if (tx->owner == &member->sync) return;
    pc_member_data_sent(member, tx, stream->progressed_ns);
}

const struct pc_stream_owner pc_member_stream_owner = {on_frame, on_bulk, on_sent};

struct pc_stream *pc_member_stream(struct pc_member *member, enum pc_member_role role, uint64_t now_ns) {
    struct pc_stream *stream = pc_stream_create(&pc_member_stream_owner, member, &member->tx_pool, now_ns);
    if (stream != NULL) stream->role = (int)role;
    return stream;
}

const struct pc_member_record *pc_member_find(const struct pc_member *member, uint64_t id) {
    for (size_t i = 0; i < member->epoch.member_count; i++) {
        if (member->epoch.members[i].id == id) return &member->epoch.members[i];
    }
    return NULL;
}

void pc_member_complete(struct pc_member *member, struct pc_call *call, const pc_error *error) {
    pc_list_remove(&call->node);
    if (error != NULL) {
        call->outcome.error = *error;
    } else {
        call->outcome.error.code = pcclSuccess;
    }
    if (call->outcome.error.code != pcclSuccess) {
        pc_error *record = &call->outcome.error;
        if (record->epoch == 0) record->epoch = member->epoch.number;
        if (record->phase[0] == '\0') pc_text_copy(record->phase, sizeof record->phase, pc_text_of(pc_call_phase(call)));
    }
    if (call->kind == PC_CALL_UPDATE_TOPOLOGY || call->kind == PC_CALL_OPTIMIZE_TOPOLOGY) member->topology_call = false;
    pc_actions_add(&member->machine.actions, PC_ACTION_COMPLETE)->call = call;
}

static void fail_call(struct pc_member *member, struct pc_call *call, pc_status code, const char *message) {
    pc_error error = {0};
    pc_error_set(&error, code, "%s", message);
    pc_member_complete(member, call, &error);
}

void pc_member_lose(struct pc_member *member, const pc_error *error, bool flush_control) {
    const bool joined = member->phase == PC_MEMBER_MEMBER;
    if (member->phase == PC_MEMBER_IDLE || member->phase == PC_MEMBER_LOST) return;
    PC_LOG(joined && error->code != pcclCancelled ? pcclLogWarn : pcclLogInfo, "%s: out of the run: %s", member->machine.name, error->message);
    member->lost = *error;
    member->phase = joined ? PC_MEMBER_LOST : PC_MEMBER_IDLE;
    pc_member_sync_end(member, false);
    pc_member_ops_lose(member, error);
    struct pc_list *node;
    while (!pc_list_empty(&member->calls)) {
        pc_member_complete(member, PC_LIST_ENTRY(member->calls.next, struct pc_call, node), error);
    }
    while (!pc_list_empty(&member->links)) {
        pc_member_link_drop(member, PC_LIST_ENTRY(member->links.next, struct pc_link, node));
    }
    while ((node = pc_list_pop(&member->inbound)) != NULL) {
        pc_stream_close(PC_LIST_ENTRY(node, struct pc_stream, node), false, &member->machine.actions);
    }
    member->inbound_count = 0;
    if (member->control != NULL) pc_stream_close(member->control, flush_control, &member->machine.actions);
    member->control = NULL;
    member->group.frozen = member->topology_call = member->stalled = false;
    /* What is left of the member list is this peer alone: a retry loop sees a world of one and ends. */
    const struct pc_member_record *self = pc_member_find(member, member->id);
    if (self != NULL) {
        member->epoch.members[0] = *self;
        member->epoch.member_count = 1;
    }
    member->group.n = 0;
    member->group.rank = PC_RANK_NONE;
    member->early_count = 0;
}

void pc_member_no_memory(struct pc_member *member, const char *what) {
    if (member->no_memory == NULL) member->no_memory = what;
}

void pc_member_break(struct pc_member *member, struct pc_stream *stream, const pc_error *error, uint64_t now_ns) {
    struct pc_link *link = stream->subject;
    if (stream->role == PC_ROLE_CONTROL) {
        pc_error lost = *error;
        if (lost.code == pcclSuccess) lost.code = pcclMasterConnectionFailed;
        pc_member_lose(member, &lost, false);
    } else if (link != NULL) {
        pc_member_link_lost(member, link, error, now_ns);
        pc_stream_close(stream, false, &member->machine.actions); /* one that was not attached yet */
    } else {
        PC_LOG(pcclLogDebug, "%s: refused a connection: %s", member->machine.name, error->message);
        if (stream->role == PC_ROLE_INBOUND && !stream->closing) member->inbound_count--;
        pc_stream_close(stream, false, &member->machine.actions);
    }
}

/* Driver events ------------------------------------------------------------------------------------------------- */

static struct pc_stream *op_accept(struct pc_machine *machine, const struct pc_address *from, uint64_t now_ns) {
    struct pc_member *member = member_of(machine);
    if (member->phase != PC_MEMBER_JOINING && member->phase != PC_MEMBER_MEMBER && member->phase != PC_MEMBER_WELCOME) {
        return NULL;
    }
    if (member->inbound_count >= PC_INBOUND_MAX) {
        struct pc_stream *oldest = PC_LIST_ENTRY(member->inbound.next, struct pc_stream, node);
        pc_stream_close(oldest, false, &machine->actions);
        member->inbound_count--;
    }
    struct pc_stream *stream = pc_member_stream(member, PC_ROLE_INBOUND, now_ns);
    if (stream == NULL) return NULL;
    stream->remote = *from;
    stream->open = true;
    pc_list_append(&member->inbound, &stream->node);
    member->inbound_count++;
    return stream;
}

static void op_opened(struct pc_machine *machine, struct pc_stream *stream, bool loopback, uint64_t now_ns) {
    struct pc_member *member = member_of(machine);
    if (stream->closing) return;
    stream->open = true;
    stream->heard_ns = now_ns;
    if (stream->role == PC_ROLE_CONTROL) {
        member->phase = PC_MEMBER_CHALLENGE;
        pc_member_say_hello(member);
    } else {
        pc_member_stripe_opened(member, stream, loopback, now_ns);
    }
    finish(member, now_ns);
}

static void op_closed(struct pc_machine *machine, struct pc_stream *stream, int sys_errno, uint64_t now_ns) {
    struct pc_member *member = member_of(machine);
    if (stream->closing) return;
    pc_error error = {0};
    char address[64];
    pc_address_format(&stream->remote, address, sizeof address);
    const bool control = stream->role == PC_ROLE_CONTROL;
    const char *who = control ? "the master" : "the peer";
    const pc_status code = control ? pcclMasterConnectionFailed : pcclRankConnectionLost;
    error.sys_errno = sys_errno;
    pc_text_copy(error.peer_address, sizeof error.peer_address, pc_text_of(address));
    if (stream->open) {
        error.last_heard_ms = (now_ns - stream->heard_ns) / PC_NS_PER_MS;
        pc_error_set(&error, code, "connection closed by %s at %s (last heard %llu ms ago)", who, address,
                     (unsigned long long)error.last_heard_ms);
    } else {
        pc_error_set(&error, code, "no connection to %s at %s: %s", who, address, strerror(sys_errno));
    }
    if (control) pc_error_hint(&error, "check that the master runs and is reachable; connect again to join as a newcomer");
    pc_member_break(member, stream, &error, now_ns);
    finish(member, now_ns);
}

static void op_received(struct pc_machine *machine, struct pc_stream *stream, size_t len_bytes, uint64_t now_ns) {
    struct pc_member *member = member_of(machine);
    if (stream->closing) return;
    const pc_status status = pc_stream_received(stream, len_bytes, now_ns);
    if (status != pcclSuccess && !stream->closing) pc_member_break(member, stream, &stream->error, now_ns);
    finish(member, now_ns);
}

static void op_sent(struct pc_machine *machine, struct pc_stream *stream, size_t len_bytes, uint64_t now_ns) {
    const bool returned = pc_stream_sent(stream, len_bytes, now_ns);
    /* Other stripes may have looked for them in vain. */
    if (returned && stream->role == PC_ROLE_STRIPE && stream->subject != NULL) pc_link_wake(stream->subject, &machine->actions);
    finish(member_of(machine), now_ns);
}

static uint64_t op_deadline(const struct pc_machine *machine) {
    const struct pc_member *member = (const struct pc_member *)(const void *)machine;
    return member->tick_ns;
}

static uint64_t next_tick(const struct pc_member *member, uint64_t now_ns) {
    if (member->phase == PC_MEMBER_IDLE || member->phase == PC_MEMBER_LOST) return UINT64_MAX;
    uint64_t due = now_ns + pc_min_u64(250 * PC_NS_PER_MS, member->heartbeat_ns);
    due = pc_min_u64(due, pc_member_links_deadline(member));
    due = pc_min_u64(due, member->ops_due_ns);
    for (struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
        due = pc_min_u64(due, PC_LIST_ENTRY(node, struct pc_call, node)->deadline_ns);
    }
    return pc_max_u64(due, now_ns + PC_NS_PER_MS);
}

/* A process that was stopped or starved must not take its own silence for everybody else's. */
static void forgive_lateness(struct pc_member *member, uint64_t now_ns) {
    if (member->tick_ns == UINT64_MAX || now_ns < member->tick_ns + 200 * PC_NS_PER_MS) return;
    const uint64_t late_ns = now_ns - member->tick_ns;
    if (member->control != NULL) {
        member->control->heard_ns = pc_min_u64(member->control->heard_ns + late_ns, now_ns);
    }
    for (struct pc_list *node = member->links.next; node != &member->links; node = node->next) {
        struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        for (uint32_t i = 0; i < link->stripes; i++) {
            struct pc_stream *stream = link->streams[i];
            if (stream == NULL) continue;
            stream->heard_ns = pc_min_u64(stream->heard_ns + late_ns, now_ns);
            stream->progressed_ns = pc_min_u64(stream->progressed_ns + late_ns, now_ns);
        }
    }
}

static void tick_calls(struct pc_member *member, uint64_t now_ns) {
    for (struct pc_list *node = member->calls.next, *next; node != &member->calls; node = next) {
        next = node->next;
        struct pc_call *call = PC_LIST_ENTRY(node, struct pc_call, node);
        if (call->deadline_ns > now_ns || call->cancelled) continue;
        call->cancelled = true;
        call->deadline_ns = UINT64_MAX;
        const unsigned long long waited_ms = (now_ns - call->posted_ns) / PC_NS_PER_MS;
        pc_error_set(&call->outcome.error, pcclTimeout, "%s not finished after %llu ms", pc_call_name(call->kind), waited_ms);
        pc_error_hint(&call->outcome.error, "a peer that is alive has not made this call; `pccl status` names it");
        if (call->kind == PC_CALL_CONNECT) {
            const pc_error error = call->outcome.error;
            pc_member_lose(member, &error, true);
            return;
        }
        pc_member_tell_master(member, PC_MSG_CALL_CANCEL, &(struct pc_msg_call_cancel){call->serial});
    }
}

static void op_tick(struct pc_machine *machine, uint64_t now_ns) {
    struct pc_member *member = member_of(machine);
    forgive_lateness(member, now_ns);
    if (member->phase != PC_MEMBER_IDLE && member->phase != PC_MEMBER_LOST) pc_member_control_tick(member, now_ns);
    if (member->phase == PC_MEMBER_JOINING || member->phase == PC_MEMBER_MEMBER) pc_member_links_tick(member, now_ns);
    if (member->phase == PC_MEMBER_MEMBER) {
        pc_member_ops_tick(member, now_ns);
        if (now_ns >= member->stall_ns) pc_member_report_stalls(member, now_ns);
    }
    tick_calls(member, now_ns);
    finish(member, now_ns);
    member->tick_ns = next_tick(member, now_ns);
}

static const struct pc_machine_ops member_ops = {
    op_accept, op_opened, op_closed, op_received, op_sent, op_deadline, op_tick,
};

/* Life ---------------------------------------------------------------------------------------------------------- */

struct pc_member *pc_member_create(const struct pc_member_config *config, uint64_t now_ns) {
    struct pc_member *member = pc_calloc(1, sizeof *member);
    if (member == NULL) return NULL;
    member->config = *config;
    if (config->run_key_len > 0) {
        member->run_key = malloc(config->run_key_len);
        if (member->run_key == NULL) {
            free(member);
            return NULL;
        }
        memcpy(member->run_key, config->run_key, config->run_key_len);
    }
    member->machine.ops = &member_ops;
    memcpy(member->machine.name, config->name, sizeof member->machine.name);
    member->dead_timeout_ns = config->dead_timeout_ns;
    member->heartbeat_ns = PC_NS_PER_S;
    member->pool.memory = config->memory;
    pc_member_group_init(&member->group, config->group, 0);
    pc_list_init(&member->groups);
    pc_list_init(&member->forming);
    pc_list_append(&member->groups, &member->group.node);
    member->tick_ns = member->ops_due_ns = UINT64_MAX;
    member->stall_ns = now_ns;
    pc_list_init(&member->inbound);
    pc_list_init(&member->links);
    pc_list_init(&member->calls);
    pc_list_init(&member->queued);
    pc_list_init(&member->parked);
    pc_list_init(&member->offers);
    pc_list_init(&member->spare_ops);
    pc_list_init(&member->sync.staged);
    pc_list_init(&member->sync.regions);
    pc_tx_pool_init(&member->tx_pool);
    return member;
}

void pc_member_destroy(struct pc_member *member) {
    if (member == NULL) return;
    pc_member_sync_end(member, false);
    pc_member_ops_fini(member);
    pc_member_drop_groups(member);
    while (!pc_list_empty(&member->links)) {
        pc_member_link_drop(member, PC_LIST_ENTRY(member->links.next, struct pc_link, node));
    }
    while (!pc_list_empty(&member->inbound)) {
        pc_stream_close(PC_LIST_ENTRY(member->inbound.next, struct pc_stream, node), false, &member->machine.actions);
    }
    if (member->control != NULL) pc_stream_close(member->control, false, &member->machine.actions);
    const struct pc_action *action;
    while ((action = pc_actions_next(&member->machine.actions)) != NULL) {
        if (action->kind == PC_ACTION_CLOSE) pc_stream_destroy(action->stream);
    }
    pc_actions_fini(&member->machine.actions);
    pc_tx_pool_fini(&member->tx_pool);
    pc_pool_fini(&member->pool);
    pc_arena_reset(&member->arena);
    free(member->epoch.members);
    free(member->group.ids);
    free(member->group.ring);
    free(member->group.cost_memory);
    free(member->done);
    free(member->early_wants);
    free(member->probe.scrap);
    free(member->run_key);
    free(member);
}

struct pc_machine *pc_member_machine(struct pc_member *member) {
    return &member->machine;
}

void pc_member_set_addresses(struct pc_member *member, const struct pc_address *addresses, uint32_t count) {
    member->address_count = (uint32_t)pc_min_u64(count, PC_ADDRESSES_MAX);
    if (count > 0) memcpy(member->addresses, addresses, member->address_count * sizeof *addresses);
}

/* Calls --------------------------------------------------------------------------------------------------------- */

static void post_connect(struct pc_member *member, struct pc_call *call, uint64_t now_ns) {
    if (member->phase != PC_MEMBER_IDLE && member->phase != PC_MEMBER_LOST) {
        fail_call(member, call, pcclInvalidUsage, "this communicator is connected, or about to be, already");
        return;
    }
    struct pc_stream *stream = pc_member_stream(member, PC_ROLE_CONTROL, now_ns);
    if (stream == NULL) {
        fail_call(member, call, pcclNoMemory, "no memory for the connection to the master");
        return;
    }
    /* Every life is a new incarnation: nothing of an earlier one may be mistaken for this. */
    member->config.random.fill(member->config.random.state, member->incarnation, sizeof member->incarnation);
    member->epoch.number = member->epoch.incarnation = member->group.epoch = 0;
    member->epoch.member_count = member->group.n = 0;
    pc_member_drop_groups(member); /* numbers of another life mean nothing in this one */
    member->newest_subset = 0;
    member->id = 0;
    member->lost = (pc_error){0};
    member->phase = PC_MEMBER_DIALING;
    member->control = stream;
    pc_list_append(&member->calls, &call->node);
    pc_actions_add(&member->machine.actions, PC_ACTION_DIAL)->stream = stream;
}

static bool any_step_open(const struct pc_member *member) {
    for (struct pc_list *node = member->groups.next; node != &member->groups; node = node->next) {
        if (PC_LIST_ENTRY(node, struct pc_member_group, node)->step_open) return true;
    }
    return false;
}

/* Calls of this group that must have ended before the call. */
static uint32_t in_the_way(struct pc_member *member, struct pc_member_group *group, const struct pc_call *call) {
    switch (call->kind) {
    case PC_CALL_PEERS_PENDING:
    case PC_CALL_LEAVE:
    case PC_CALL_CREATE_GROUP: return 0;
    case PC_CALL_END_STEP: return pc_member_ops_posted(member, group);
    default: return member->posted_count;
    }
}

/* Steps may end while another thread ends one of another group, or asks for newcomers. */
static bool go_together(const struct pc_call *a, const struct pc_call *b) {
    if (a->kind == PC_CALL_END_STEP && b->kind == PC_CALL_END_STEP) return a->group != b->group;
    return (a->kind == PC_CALL_END_STEP && b->kind == PC_CALL_PEERS_PENDING) ||
           (a->kind == PC_CALL_PEERS_PENDING && b->kind == PC_CALL_END_STEP);
}

static bool in_another(const struct pc_member *member, const struct pc_call *call) {
    for (const struct pc_list *node = member->calls.next; node != &member->calls; node = node->next) {
        if (!go_together(call, PC_LIST_ENTRY(node, const struct pc_call, node))) return true;
    }
    return false;
}

/* Why a joint call may not start now; NULL: it may. */
static const char *obstacle(struct pc_member *member, struct pc_member_group *group, const struct pc_call *call,
                            pc_status *code) {
    if (in_the_way(member, group, call) > 0) {
        *code = pcclPendingAsyncOps;
        return "asynchronous operations are in flight; await them first";
    }
    if (call->kind != PC_CALL_END_STEP && call->kind != PC_CALL_PEERS_PENDING && call->kind != PC_CALL_LEAVE &&
        any_step_open(member)) {
        *code = pcclInvalidUsage;
        return "a step is open; end it first";
    }
    if (in_another(member, call)) {
        *code = pcclInvalidUsage;
        return "another joint call of this communicator is in progress on a different thread";
    }
    if (call->kind == PC_CALL_OPTIMIZE_TOPOLOGY && member->epoch.member_count < 2) {
        *code = pcclInvalidUsage;
        return "there is no topology to optimize in a world of one";
    }
    return NULL;
}

static uint64_t vote_on(const struct pc_member_group *group, const struct pc_call *call) {
    if (group->step_poison.code == pcclSuccess) return call->vote ? PC_VOTE_FOR : PC_VOTE_GIVE_UP;
    return group->step_poison.code == pcclTimeout ? PC_VOTE_GIVE_UP : PC_VOTE_AGAINST;
}

static void post_joint(struct pc_member *member, struct pc_call *call) {
    pc_status code = pcclInvalidUsage;
    struct pc_member_group *group = pc_member_group(member, call->group);
    const char *why = group == NULL ? "there is no such group: it was destroyed, or made before this connection"
                                    : obstacle(member, group, call, &code);
    if (why != NULL) {
        fail_call(member, call, code, why);
        return;
    }
    if (group->broken.code != pcclSuccess) {
        pc_member_end_step(group);
        pc_member_complete(member, call, &group->broken);
        return;
    }
    call->serial = ++member->next_serial;
    pc_list_append(&member->calls, &call->node);
    if (call->kind == PC_CALL_SYNC_STATE) {
        pc_member_sync_offer(member, call);
        return;
    }
    if (call->kind == PC_CALL_UPDATE_TOPOLOGY || call->kind == PC_CALL_OPTIMIZE_TOPOLOGY) member->topology_call = true;
    if (call->kind == PC_CALL_OPTIMIZE_TOPOLOGY) pc_member_report_links(member);
    const struct pc_msg_call message = {
        .kind = (uint8_t)call->kind,
        .serial = call->serial,
        .subset = call->group,
        .value = call->kind == PC_CALL_END_STEP ? vote_on(group, call) : 0,
        .step = group->step,
        .ids = {call->ids, call->id_count},
    };
    pc_member_tell_master(member, PC_MSG_CALL, &message);
}

static void leave(struct pc_member *member, struct pc_call *call) {
    pc_member_tell_master(member, PC_MSG_GOODBYE, &(struct pc_msg_goodbye){pc_text_of("it left the run")});
    pc_error error = {0};
    pc_error_set(&error, pcclCancelled, "this peer has left the run");
    if (call != NULL) pc_member_complete(member, call, NULL);
    pc_member_lose(member, &error, true);
}

void pc_member_post(struct pc_member *member, struct pc_call *call, uint64_t now_ns) {
    pc_list_init(&call->node);
    call->posted_ns = now_ns;
    const uint64_t timeout_ns = call->timeout_ns != 0 ? call->timeout_ns : member->config.op_timeout_ns;
    call->deadline_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
    call->cancelled = false;
    memset(&call->outcome, 0, sizeof call->outcome);
    if (call->kind == PC_CALL_CONNECT) {
        post_connect(member, call, now_ns);
    } else if (member->phase == PC_MEMBER_LOST) {
        pc_member_complete(member, call, call->kind == PC_CALL_LEAVE ? NULL : &member->lost);
    } else if (call->kind == PC_CALL_LEAVE) {
        leave(member, call);
    } else if (member->phase != PC_MEMBER_MEMBER) {
        fail_call(member, call, pcclInvalidUsage, "this communicator is not connected");
    } else if (call->kind == PC_CALL_COLLECTIVE) {
        pc_member_post_collective(member, call, now_ns);
    } else {
        post_joint(member, call);
    }
    finish(member, now_ns);
    member->tick_ns = pc_min_u64(member->tick_ns, next_tick(member, now_ns));
}

void pc_member_cancel(struct pc_member *member, struct pc_call *call, uint64_t now_ns) {
    (void)now_ns;
    if (call->cancelled) return;
    pc_error error = {0};
    pc_error_set(&error, pcclCancelled, "%s was cancelled by the caller", pc_call_name(call->kind));
    if (call->kind == PC_CALL_COLLECTIVE) {
        pc_member_cancel_collective(member, call, pcclCancelled, "cancelled by the caller");
    } else if (!pc_list_linked(&call->node)) {
        return; /* completed already */
    } else if (call->kind == PC_CALL_CONNECT) {
        pc_member_lose(member, &error, true);
    } else {
        call->cancelled = true;
        call->outcome.error = error;
        pc_member_tell_master(member, PC_MSG_CALL_CANCEL, &(struct pc_msg_call_cancel){call->serial});
    }
    finish(member, now_ns);
}

void pc_member_abort(struct pc_member *member, pc_status code, const char *why, uint64_t now_ns) {
    (void)now_ns;
    pc_error error = {0};
    pc_error_set(&error, code, "%s", why);
    if (member->phase >= PC_MEMBER_JOINING && member->phase != PC_MEMBER_LOST) {
        pc_member_tell_master(member, PC_MSG_GOODBYE, &(struct pc_msg_goodbye){pc_text_of(why)});
    }
    pc_member_lose(member, &error, true);
    finish(member, now_ns);
}

/* Views --------------------------------------------------------------------------------------------------------- */

void pc_member_view(const struct pc_member *member, struct pc_member_view *view) {
    *view = (struct pc_member_view){
        .connected = member->phase == PC_MEMBER_MEMBER,
        .id = member->id,
        .epoch = member->epoch.number,
        .incarnation = member->epoch.incarnation,
        .group_epoch = member->group.members_epoch,
        .members = member->epoch.members,
        .member_count = (uint32_t)member->epoch.member_count,
        .lost = &member->lost,
    };
}

void pc_member_set_threads_free(struct pc_member *member, bool free) {
    member->threads_free = free;
}

uint32_t pc_member_world_size(const struct pc_member *member, uint32_t group) {
    uint32_t size = 0;
    for (size_t i = 0; i < member->epoch.member_count; i++) {
        const struct pc_member_record *record = &member->epoch.members[i];
        if (record->group == group && !record->observer) size++;
    }
    return size;
}

uint32_t pc_member_ops_in_flight(const struct pc_member *member) {
    return member->posted_count;
}

void pc_member_stats(const struct pc_member *member, pcclStats_t *stats) {
    *stats = member->stats;
    stats->epoch = member->epoch.number;
    stats->peer_id = member->id;
    stats->rtt_us = member->group.rtt_us;
    stats->pool_bytes = member->pool.kept_bytes;
    for (struct pc_list *node = member->links.next; node != &member->links; node = node->next) {
        const struct pc_link *link = PC_LIST_ENTRY(node, struct pc_link, node);
        stats->held_bytes += link->held_bytes;
        stats->eager_bytes += link->eager_out_bytes;
        if (link->state == PC_LINK_UP && link->streams[0]->shared_memory) stats->shm_links++;
        for (uint32_t i = 0; i < link->stripes; i++) {
            if (link->streams[i] == NULL) continue;
            stats->tx_wire_bytes += link->streams[i]->tx_bytes;
            stats->rx_wire_bytes += link->streams[i]->rx_bytes;
        }
    }
}
