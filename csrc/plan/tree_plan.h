/*
 * K2: binary trees over the ranks of a group. In a double tree every rank has children in at most one of the two, so that
 * with half of a payload on each tree everybody sends and receives about as much as the others (Sanders, Speck, Träff:
 * Two-tree algorithms for full bandwidth broadcast, reduction and scan, Parallel Computing 35, 2009).
 */
#ifndef PC_TREE_PLAN_H
#define PC_TREE_PLAN_H

#include <stdint.h>

struct pc_tree_node {
    uint32_t parent; /* UINT32_MAX: this rank is the root */
    uint32_t child_count;
    uint32_t children[2]; /* ascending in the tree's own order: the order of addition */
};

/* The place of rank in tree 0 or 1 of n ranks. */
void pc_double_tree_node(uint32_t n, uint32_t tree, uint32_t rank, struct pc_tree_node *node);
/* The place of rank in a tree with this root. */
void pc_rooted_tree_node(uint32_t n, uint32_t root, uint32_t rank, struct pc_tree_node *node);

#endif
