"""Trees over every number of ranks up to 256: they span, parents and children agree, and the load is shared."""

from __future__ import annotations

from dataclasses import dataclass

import c_level
import pytest

lib = c_level.load(
    """
    struct pc_tree_node { uint32_t parent, child_count, children[2]; };
    void pc_double_tree_node(uint32_t n, uint32_t tree, uint32_t rank, struct pc_tree_node *node);
    void pc_rooted_tree_node(uint32_t n, uint32_t root, uint32_t rank, struct pc_tree_node *node);
    """,
    only=("base", "bytes", "math", "plan", "wire"),
)
ffi = lib.ffi
NONE = 0xFFFFFFFF


@dataclass(frozen=True)
class Node:
    parent: int
    children: tuple[int, ...]


def node_of(function, *arguments) -> Node:
    node = ffi.new("struct pc_tree_node *")
    function(*arguments, node)
    assert node.child_count <= 2
    return Node(node.parent, tuple(node.children)[: node.child_count])


def double_tree(n: int, tree: int) -> list[Node]:
    return [node_of(lib.pc_double_tree_node, n, tree, rank) for rank in range(n)]


def rooted_tree(n: int, root: int) -> list[Node]:
    return [node_of(lib.pc_rooted_tree_node, n, root, rank) for rank in range(n)]


def depth_of(nodes: list[Node]) -> int:
    """Walks the tree from its root: each rank once, as the child of whom it calls its parent."""
    roots = [rank for rank, node in enumerate(nodes) if node.parent == NONE]
    assert len(roots) == 1
    level, seen, depth = roots, set(roots), 0
    while True:
        below = [(child, rank) for rank in level for child in nodes[rank].children]
        if not below:
            break
        for child, rank in below:
            assert nodes[child].parent == rank
            assert child not in seen
            seen.add(child)
        level, depth = [child for child, _ in below], depth + 1
    assert seen == set(range(len(nodes)))
    return depth


@pytest.mark.parametrize("n", range(1, 257))
def test_double_tree(n):
    trees = [double_tree(n, tree) for tree in (0, 1)]
    for nodes in trees:
        assert depth_of(nodes) <= (n - 1).bit_length() + 1
    for first, second in zip(*trees, strict=True):
        assert not (first.children and second.children)
    # Nobody gets or sends more than the payload's double: all of one half as an inner node, and its part of the other.
    sent = [sum(len(node.children) + (node.parent != NONE) for node in nodes) for nodes in zip(*trees, strict=True)]
    assert max(sent) <= 4
    assert sum(sent) == 4 * (n - 1)


@pytest.mark.parametrize("n", [*range(1, 34), 64, 100, 127, 128, 129, 255, 256])
def test_rooted_tree(n):
    for root in range(n) if n < 34 else (0, 1, n // 2, n - 1):
        nodes = rooted_tree(n, root)
        assert nodes[root].parent == NONE
        assert depth_of(nodes) <= (n - 1).bit_length() + 1


def test_small_trees():
    assert double_tree(1, 0) == double_tree(1, 1) == [Node(NONE, ())]
    for tree in (0, 1):
        assert sorted(len(node.children) for node in double_tree(2, tree)) == [0, 1]
        assert sorted(len(node.children) for node in double_tree(3, tree)) == [0, 0, 2]
    assert {nodes.index(Node(NONE, nodes[i].children)) for nodes in (double_tree(2, 0), double_tree(2, 1))
            for i in (0, 1) if nodes[i].parent == NONE} == {0, 1}  # fmt: skip
