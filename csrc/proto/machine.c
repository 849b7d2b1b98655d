/* The queue of actions. A vector with a head: it is drained after every event, so it stays short and is reused. */
#include "proto/machine.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

const struct pc_action *pc_actions_first(struct pc_actions *actions) {
    if (actions->head < actions->count) return &actions->items[actions->head];
    actions->head = actions->count = 0;
    return NULL;
}

const struct pc_action *pc_actions_next(struct pc_actions *actions) {
    const struct pc_action *action = pc_actions_first(actions);
    if (action != NULL) actions->head++;
    return action;
}

struct pc_action *pc_actions_add(struct pc_actions *actions, enum pc_action_kind kind) {
    /* When memory ends, actions go to one that nobody reads, and the driver sees failed. */
    static _Thread_local struct pc_action lost;
    void *items = actions->items;
    struct pc_action *action = &lost;
    if (pc_grow(&items, &actions->capacity, actions->count + 1, sizeof *actions->items)) {
        actions->items = items;
        action = &actions->items[actions->count++];
    } else {
        actions->failed = true;
    }
    action->kind = kind;
    action->stream = NULL;
    action->call = NULL;
    action->job = NULL;
    action->id = 0;
    action->address_count = 0;
    return action;
}

void pc_actions_fini(struct pc_actions *actions) {
    free(actions->items);
    memset(actions, 0, sizeof *actions);
}
