/* K0: intrusive doubly linked list with a sentinel. An unlinked node points to itself; a zeroed one counts as unlinked. */
#ifndef PC_LIST_H
#define PC_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct pc_list {
    struct pc_list *next, *prev;
};

static inline void pc_list_init(struct pc_list *list) {
    list->next = list->prev = list;
}

static inline bool pc_list_linked(const struct pc_list *node) {
    return node->next != NULL && node->next != node;
}

static inline bool pc_list_empty(const struct pc_list *list) {
    return !pc_list_linked(list);
}

static inline void pc_list_append(struct pc_list *list, struct pc_list *node) {
    node->prev = list->prev;
    node->next = list;
    list->prev->next = node;
    list->prev = node;
}

static inline void pc_list_prepend(struct pc_list *list, struct pc_list *node) {
    pc_list_append(list->next, node);
}

static inline void pc_list_remove(struct pc_list *node) {
    if (!pc_list_linked(node)) return;
    node->prev->next = node->next;
    node->next->prev = node->prev;
    pc_list_init(node);
}

/* The structure of type that holds node as its member. */
#define PC_LIST_ENTRY(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

static inline struct pc_list *pc_list_pop(struct pc_list *list) {
    if (pc_list_empty(list)) return NULL;
    struct pc_list *node = list->next;
    pc_list_remove(node);
    return node;
}

#endif
