/*
 * One tree in which all odd places are leaves, and its relabellings. Places 1 and up are a binary search tree in which the
 * height of a place is the number of its trailing zero bits, and a place that does not exist (there is no power of two of
 * them) leaves its children to the next one below. An even number of ranks has a place 0 too, the root, whose only child
 * is the top of that; an odd number makes the top the root, for then every place that has children has two, and two trees
 * need not share one.
 */
#include "plan/tree_plan.h"

#include <assert.h>
#include <stdbool.h>

#define NONE UINT32_MAX

/* How places are called: the first place is rank `shift`, or the last rank and so on downwards. */
struct labels {
    uint32_t n, shift;
    bool mirrored;
};

static uint32_t first_place(uint32_t n) {
    return n % 2;
}

static uint32_t end_place(uint32_t n) {
    return n + n % 2;
}

static uint32_t top_place(uint32_t n) {
    uint32_t top = 1;
    while (top * 2 < end_place(n)) top *= 2;
    return top;
}

static uint32_t root_place(uint32_t n) {
    return n % 2 == 0 ? 0 : top_place(n);
}

static uint32_t parent_of(uint32_t n, uint32_t place) {
    if (place == root_place(n)) return NONE;
    const uint32_t low = place & (~place + 1);
    const uint32_t above = (place ^ low) | low << 1; /* the middle of the range twice as wide */
    return above < end_place(n) ? above : place ^ low;
}

/* Children are places whose parent this is: below, half the height away; above, the first that exists. */
static uint32_t children_of(uint32_t n, uint32_t place, uint32_t children[2]) {
    if (place == 0) {
        children[0] = top_place(n);
        return 1;
    }
    const uint32_t half = (place & (~place + 1)) / 2;
    if (half == 0) return 0;
    children[0] = place - half;
    uint32_t step = half;
    while (step > 0 && place + step >= end_place(n)) step /= 2;
    if (step == 0) return 1;
    children[1] = place + step;
    return 2;
}

/* Where every parent is higher than its children, all ways up end at the root. */
static bool proved(uint32_t n, uint32_t place) {
    const uint32_t parent = parent_of(n, place), low = place & (~place + 1);
    uint32_t children[2];
    for (uint32_t i = 0, count = children_of(n, place, children); i < count; i++) {
        if (children[i] >= end_place(n) || parent_of(n, children[i]) != place) return false;
    }
    if (parent == NONE) return place == root_place(n);
    if (parent != 0 && (parent & (~parent + 1)) <= low) return false;
    const uint32_t count = children_of(n, parent, children);
    return children[0] == place || (count == 2 && children[1] == place);
}

static uint32_t rank_of(const struct labels *labels, uint32_t place) {
    const uint32_t index = place - first_place(labels->n);
    return labels->mirrored ? labels->n - 1 - index : (index + labels->shift) % labels->n;
}

static uint32_t place_of(const struct labels *labels, uint32_t rank) {
    const uint32_t n = labels->n;
    return first_place(n) + (labels->mirrored ? n - 1 - rank : (rank + n - labels->shift) % n);
}

static void describe(const struct labels *labels, uint32_t rank, struct pc_tree_node *node) {
    const uint32_t n = labels->n, place = place_of(labels, rank), parent = parent_of(n, place);
    assert(rank_of(labels, place) == rank && proved(n, place));
    uint32_t children[2];
    *node = (struct pc_tree_node){.parent = parent == NONE ? NONE : rank_of(labels, parent)};
    node->child_count = children_of(n, place, children);
    for (uint32_t i = 0; i < node->child_count; i++) node->children[i] = rank_of(labels, children[i]);
}

void pc_rooted_tree_node(uint32_t n, uint32_t root, uint32_t rank, struct pc_tree_node *node) {
    assert(rank < n && root < n);
    const struct labels labels = {n, (root + n - (root_place(n) - first_place(n))) % n, false};
    describe(&labels, rank, node);
    assert(rank != root || node->parent == NONE);
}

/* Leaves have odd places. In the other tree they have even ones: even n are mirrored for that, odd ones shifted by one. */
void pc_double_tree_node(uint32_t n, uint32_t tree, uint32_t rank, struct pc_tree_node *node) {
    assert(rank < n && tree < 2);
    const struct labels labels = {n, tree == 1 && n % 2 == 1 ? 1 % n : 0, tree == 1 && n % 2 == 0};
    describe(&labels, rank, node);
}
