"""Rounds of pairs: everybody meets everybody else once, and is in one pair of a round."""

from __future__ import annotations

import c_level
import pytest

lib = c_level.load(
    "uint32_t rounds(uint32_t n); uint32_t partner(uint32_t n, uint32_t round, uint32_t member);",
    only=("base",),
    extra="""
    #include "plan/tournament.h"
    uint32_t rounds(uint32_t n);
    uint32_t partner(uint32_t n, uint32_t round, uint32_t member);
    uint32_t rounds(uint32_t n) { return pc_tournament_rounds(n); }
    uint32_t partner(uint32_t n, uint32_t round, uint32_t member) { return pc_tournament_partner(n, round, member); }
    """,
)


@pytest.mark.parametrize("n", [*range(2, 20), 64, 127, 128])
def test_everybody_meets_everybody_once(n: int) -> None:
    met = set()
    assert lib.rounds(n) == (n - 1 if n % 2 == 0 else n)
    for round_ in range(lib.rounds(n)):
        partners = [lib.partner(n, round_, member) for member in range(n)]
        assert partners.count(n) == n % 2
        for member, partner in enumerate(partners):
            if partner < n:
                assert partner != member
                assert partners[partner] == member
                met.add((member, partner))
    assert len(met) == n * (n - 1)


def test_one_alone_meets_nobody() -> None:
    assert lib.rounds(0) == lib.rounds(1) == 0
