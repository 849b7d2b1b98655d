/*
 * One tree in which all odd places are leaves, and its relabellings. Place 0 is the root; the rest is a binary search
 * tree over 1 to n-1 in which the height of a place is the number of its trailing zero bits, and a place that does not
 * exist (n is not a power of two) leaves its children to the next one below.
 */
#include "plan/tree_plan.h"

#include <assert.h>

static uint32_t parent_of(uint32_t n, uint32_t place) {
    const uint32_t low = place & (~place + 1);
    const uint32_t above = (place ^ low) | low << 1; /* the middle of the range twice as wide */
    return above < n ? above : place ^ low;
}

static void add_child(struct pc_tree_node *node, uint32_t child) {
    node->children[node->child_count++] = child;
}

/* Children are places whose parent this is: below, half the height away; above, the first that exists. */
static void children_of(uint32_t n, uint32_t place, struct pc_tree_node *node) {
    if (place == 0) {
        uint32_t top = 1;
        while (top * 2 < n) top *= 2;
        if (n > 1) add_child(node, top);
        return;
    }
    const uint32_t half = (place & (~place + 1)) / 2;
    if (half == 0) return;
    add_child(node, place - half);
    uint32_t step = half;
    while (step > 0 && place + step >= n) step /= 2;
    if (step > 0) add_child(node, place + step);
}

static void relabel(struct pc_tree_node *node, uint32_t (*rank_of)(uint32_t, uint32_t, uint32_t), uint32_t n,
                    uint32_t key) {
    if (node->parent != UINT32_MAX) node->parent = rank_of(n, node->parent, key);
    for (uint32_t i = 0; i < node->child_count; i++) node->children[i] = rank_of(n, node->children[i], key);
}

static void place_node(uint32_t n, uint32_t place, struct pc_tree_node *node) {
    *node = (struct pc_tree_node){.parent = place == 0 ? UINT32_MAX : parent_of(n, place)};
    children_of(n, place, node);
    for (uint32_t i = 0; i < node->child_count; i++) assert(parent_of(n, node->children[i]) == place);
}

static uint32_t rotated(uint32_t n, uint32_t place, uint32_t by) {
    return (place + by) % n;
}

static uint32_t mirrored(uint32_t n, uint32_t place, uint32_t unused) {
    (void)unused;
    return n - 1 - place;
}

void pc_rooted_tree_node(uint32_t n, uint32_t root, uint32_t rank, struct pc_tree_node *node) {
    assert(rank < n && root < n);
    place_node(n, (rank + n - root) % n, node);
    relabel(node, rotated, n, root);
}

/* Leaves are odd: seen in a mirror they are even where n is even, and shifted by one where it is odd. */
void pc_double_tree_node(uint32_t n, uint32_t tree, uint32_t rank, struct pc_tree_node *node) {
    assert(rank < n && tree < 2);
    if (tree == 0) {
        place_node(n, rank, node);
    } else if (n % 2 == 0) {
        place_node(n, n - 1 - rank, node);
        relabel(node, mirrored, n, 0);
    } else {
        pc_rooted_tree_node(n, 1 % n, rank, node);
    }
}
