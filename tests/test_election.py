"""The election of the shared state's content: rule by rule, and against a model of these rules in Python."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from c_level import load
from hypothesis import given, settings
from hypothesis import strategies as st

lib = load(
    """
    struct pc_text { const char *data; uint32_t len_bytes; };
    struct pc_array { void *items; uint32_t count; };
    struct pc_arena { void *blocks; };
    struct pc_state_key {
        struct pc_text name; uint32_t dtype; uint64_t count; uint8_t may_differ; uint8_t digest[16];
    };
    struct pc_msg_sync_offer { uint64_t serial, revision; uint32_t strategy; struct pc_array keys; };
    struct pc_voter {
        uint64_t id; bool standing; const struct pc_msg_sync_offer *offer;
        bool kicked; char reason[256]; int role; uint64_t source; uint32_t *keys; uint32_t key_count;
    };
    struct pc_election {
        uint64_t expected, revision; struct pc_voter *voters; uint32_t count, winner;
    };
    int pc_election_run(struct pc_election *election, struct pc_arena *arena);
    void pc_arena_reset(struct pc_arena *arena);
    """,
    only=("base", "bytes", "wire", "math", "plan", "proto"),
)
ffi = lib.ffi
ENFORCE, RECEIVE, SEND = range(3)
KEEP, RECEIVER, SERVER = range(3)
NOBODY = 2**32 - 1
FLOAT, DOUBLE = 10, 11


@dataclass(frozen=True)
class Key:
    digest: int
    name: str = "w"
    dtype: int = FLOAT
    count: int = 8
    free: bool = False  # its content may differ

    def sort(self) -> tuple[str, int, int, bool]:
        return self.name, self.dtype, self.count, self.free


@dataclass(frozen=True)
class Offer:
    revision: int
    keys: tuple[Key, ...] = (Key(1),)
    strategy: int = ENFORCE
    standing: bool = False  # took part in the last synchronisation

    def content(self) -> tuple[Any, ...]:
        """What is compared: free tensors count with their sort alone."""
        return tuple((key.sort(), None if key.free else key.digest) for key in self.keys)

    def sorts(self) -> tuple[Any, ...]:
        return tuple(key.sort() for key in self.keys)


@dataclass
class Outcome:
    revision: int
    winner: int | None
    kicked: dict[int, str]  # voter: reason
    sources: dict[int, int]  # receiver: source
    received: dict[int, list[int]]  # receiver: keys
    roles: list[int]


def elect(offers: Sequence[Offer], expected: int) -> Outcome:
    """What the C code makes of these offers."""
    ids = [7 * i + 3 for i in range(len(offers))]
    arena, kept = ffi.new("struct pc_arena *"), []
    voters = ffi.new("struct pc_voter[]", len(offers))
    for voter, id_, offer in zip(voters, ids, offers, strict=True):
        names = [ffi.new("char[]", key.name.encode()) for key in offer.keys]
        keys = ffi.new("struct pc_state_key[]", len(offer.keys))
        for i, key in enumerate(offer.keys):
            digest = key.digest.to_bytes(16, "big")
            keys[i] = [(names[i], len(key.name)), key.dtype, key.count, key.free, digest]
        message = ffi.new("struct pc_msg_sync_offer *", [0, offer.revision, offer.strategy, (keys, len(offer.keys))])
        kept += [names, keys, message]
        voter.id, voter.standing, voter.offer = id_, offer.standing, message
    election = ffi.new("struct pc_election *", [expected, 0, voters, len(offers), 0])
    assert lib.pc_election_run(election, arena) == 0
    receivers = [i for i, voter in enumerate(voters) if voter.key_count and not voter.kicked]
    outcome = Outcome(
        revision=election.revision,
        winner=None if election.winner == NOBODY else election.winner,
        kicked={i: ffi.string(voter.reason).decode() for i, voter in enumerate(voters) if voter.kicked},
        sources={i: ids.index(voters[i].source) for i in receivers},
        received={i: list(voters[i].keys[0 : voters[i].key_count]) for i in receivers},
        roles=[voter.role for voter in voters],
    )
    lib.pc_arena_reset(arena)
    return outcome


# The model ------------------------------------------------------------------------------------------------------------


@dataclass
class Expected:
    kicked: set[int]
    revision: int | None = None  # None: all are kicked before or because there is nothing to elect
    winner: int | None = None
    holders: frozenset[int] = frozenset()


def revision_of(offers: Sequence[Offer], left: set[int], expected: int) -> int:
    if len(offers) == 1:
        return offers[0].revision
    if expected == 0:
        return max((offers[i].revision for i in left if offers[i].strategy != RECEIVE), default=0)
    standing = {offers[i].revision for i in left if offers[i].standing}
    ahead = standing.pop() if len(standing) == 1 else 0
    return max(ahead, expected)


def model(offers: Sequence[Offer], expected: int) -> Expected:
    """The rules as docs/protocol.md lists them."""
    everybody = set(range(len(offers)))
    alone = len(offers) == 1
    left = {i for i in everybody if offers[i].strategy <= SEND}
    if any(offers[i].strategy == ENFORCE for i in left):
        left = {i for i in left if offers[i].strategy == ENFORCE}
    if not alone and all(offers[i].strategy == RECEIVE for i in left):
        return Expected(everybody)

    revision = revision_of(offers, left, expected)
    left = {i for i in left if offers[i].revision <= revision}
    left = {i for i in left if offers[i].revision == revision or offers[i].strategy != SEND}

    senders = {i for i in left if offers[i].strategy == SEND}
    candidates = senders or {i for i in left if alone or offers[i].strategy != RECEIVE}
    if not candidates:
        return Expected(everybody)
    ballots = {i: (offers[i].revision, offers[i].content()) for i in candidates}
    votes = Counter(ballots.values())
    winner = min(candidates, key=lambda i: (-offers[i].revision, -votes[ballots[i]], i))

    holders = frozenset(i for i in candidates if ballots[i] == ballots[winner])
    left = {i for i in left if offers[i].sorts() == offers[winner].sorts()}
    left = {i for i in left if i in holders or offers[i].strategy != SEND}
    return Expected(everybody - left, revision, winner, holders)


def differences(own: Offer, source: Offer, revision: int) -> list[int]:
    behind = own.revision < revision
    pairs = enumerate(zip(own.keys, source.keys, strict=True))
    return [i for i, (mine, wanted) in pairs if mine.digest != wanted.digest and (behind or not mine.free)]


def check(offers: Sequence[Offer], expected: int) -> None:
    wanted, got = model(offers, expected), elect(offers, expected)
    assert got.kicked.keys() == wanted.kicked, got.kicked
    assert all(got.kicked.values()), "nobody is kicked without a reason"
    assert got.winner == wanted.winner
    if wanted.winner is None:
        assert got.sources == {}
        return
    assert got.revision == wanted.revision
    for i in set(range(len(offers))) - wanted.kicked - wanted.holders:
        # Free tensors are as their source has them, and the sources may differ in these.
        source = got.sources.get(i)
        possible = [source] if source is not None else list(wanted.holders)
        assert set(possible) <= wanted.holders
        lists = [differences(offers[i], offers[holder], got.revision) for holder in possible]
        assert got.received.get(i, []) in lists
    assert not wanted.holders & got.sources.keys(), "who has the content receives nothing"
    for i, role in enumerate(got.roles):
        serves = i in got.sources.values()
        assert role == (RECEIVER if i in got.sources else SERVER if serves else KEEP)
    served = Counter(got.sources.values())
    loads = [served[i] for i in wanted.holders]
    assert max(loads) - min(loads) <= 1, "holders take turns"


# Drawn from few values, so that offers often agree; now and then one has another sort of tensor.
ODD = [{"name": "x"}, {"dtype": DOUBLE}, {"count": 9}, {"free": True}, {"free": False}]


@st.composite
def contents(draw: st.DrawFn) -> list[tuple[Key, ...]]:
    frees = draw(st.sampled_from([(), (False,), (True,), (False, True), (True, False, True), (False, False)]))
    digests = st.integers(1, 2)
    found = []
    for _ in range(draw(st.integers(1, 4))):
        keys = [Key(draw(digests), f"t{i}", free=free) for i, free in enumerate(frees)]
        if keys and draw(st.integers(0, 7)) == 0:
            keys[-1] = replace(keys[-1], **draw(st.sampled_from(ODD)))
        elif keys and draw(st.integers(0, 15)) == 0:
            keys.pop()
        found.append(tuple(keys))
    return found


@st.composite
def offer_lists(draw: st.DrawFn) -> tuple[list[Offer], int]:
    base = draw(st.integers(0, 5))
    offers = st.builds(
        Offer,
        revision=st.sampled_from([base, base, base, base + 1, max(base - 1, 0), 0, 9]),
        keys=st.sampled_from(draw(contents())),
        strategy=st.sampled_from(
            draw(st.sampled_from([[ENFORCE], [RECEIVE, SEND], [ENFORCE, RECEIVE, SEND], [RECEIVE], [SEND, 3]]))
        ),
        standing=st.booleans(),
    )
    return draw(st.lists(offers, min_size=1, max_size=7)), draw(st.sampled_from([0, base, base + 1, 2]))


@settings(max_examples=2000, deadline=None)
@given(offer_lists())
def test_the_code_elects_what_the_rules_say(case: tuple[list[Offer], int]) -> None:
    check(*case)


@settings(max_examples=500, deadline=None)
@given(offer_lists())
def test_whoever_stays_ends_with_the_same_content(case: tuple[list[Offer], int]) -> None:
    offers, expected = case
    got = elect(offers, expected)
    ends = set()
    for i in set(range(len(offers))) - got.kicked.keys():
        keys = list(offers[i].keys)
        for k in got.received.get(i, []):
            keys[k] = offers[got.sources[i]].keys[k]
        ends.add(Offer(got.revision, tuple(keys)).content())
    assert len(ends) == (0 if len(got.kicked) == len(offers) else 1)
    if ends:
        assert got.winner is not None
        assert ends == {offers[got.winner].content()}


def test_every_pair_of_offers() -> None:
    singles = [
        Offer(revision, (Key(digest),), strategy, standing)
        for revision in (0, 1, 2, 4)
        for digest in (1, 2)
        for strategy in (ENFORCE, RECEIVE, SEND)
        for standing in (False, True)
    ]
    for pair in itertools.product(singles, repeat=2):
        for expected in (0, 2):
            check(pair, expected)


# One by one -----------------------------------------------------------------------------------------------------------


def offers_of(*contents: int, revision: int = 1, strategy: int = ENFORCE) -> list[Offer]:
    return [Offer(revision, (Key(content),), strategy) for content in contents]


@pytest.mark.parametrize("strategy", [ENFORCE, RECEIVE, SEND])
@pytest.mark.parametrize(("expected", "revision"), [(0, 0), (0, 13), (5, 5), (5, 9), (5, 2)])
def test_alone_nothing_is_wrong(strategy: int, expected: int, revision: int) -> None:
    got = elect([Offer(revision, strategy=strategy, standing=expected > 0)], expected)
    assert (got.kicked, got.winner, got.revision, got.sources) == ({}, 0, revision, {})


def test_popularity_beats_the_longest_standing() -> None:
    got = elect(offers_of(1, 2, 2), 0)
    assert (got.winner, got.sources, got.received) == (1, {0: 1}, {0: [0]})


def test_a_tie_is_one_transfer_from_the_longest_standing() -> None:
    got = elect(offers_of(1, 2), 0)
    assert (got.winner, got.sources) == (0, {1: 0})


def test_contents_that_may_differ_do_not_split_the_votes() -> None:
    keys = [(Key(1), Key(1, "rng", free=True)), (Key(2), Key(2, "rng", free=True)), (Key(2), Key(3, "rng", free=True))]
    got = elect([Offer(1, each) for each in keys], 0)
    assert (got.winner, got.received) == (1, {0: [0]})


def test_receivers_take_turns_over_the_holders() -> None:
    got = elect(offers_of(1, 1, 1, 2, 3, 4), 0)
    assert sorted(got.sources.items()) == [(3, 0), (4, 1), (5, 2)]


def test_a_new_run_begins_with_the_highest_revision_offered() -> None:
    got = elect([Offer(0, (Key(1),)), Offer(13, (Key(2),)), Offer(0, (Key(1),))], 0)
    assert (got.revision, got.winner, got.sources, got.kicked) == (13, 1, {0: 1, 2: 1}, {})


def test_a_revision_beyond_the_expected_one_is_kicked_with_both_numbers() -> None:
    got = elect([Offer(5, standing=True), Offer(6), Offer(5, standing=True)], 5)
    assert got.revision == 5
    assert list(got.kicked) == [1]
    assert "6" in got.kicked[1]
    assert "5" in got.kicked[1]


def test_those_of_the_last_synchronisation_may_move_on_together() -> None:
    together = [Offer(9, standing=True), Offer(0, (Key(4),)), Offer(9, standing=True)]
    got = elect(together, 5)
    assert (got.revision, got.kicked, list(got.sources)) == (9, {}, [1])


@pytest.mark.parametrize("revisions", [(9, 8), (9, 5), (9, 0), (0, 9), (8, 9)])
def test_those_that_do_not_move_on_together_are_held_to_the_expected_revision(revisions: tuple[int, int]) -> None:
    got = elect([Offer(revision, standing=True) for revision in revisions], 5)
    assert got.revision == 5
    assert set(got.kicked) == {i for i, revision in enumerate(revisions) if revision > 5}


def test_equal_content_of_an_older_revision_is_lifted_without_bytes() -> None:
    got = elect([Offer(5, standing=True), Offer(2)], 5)
    assert (got.revision, got.sources, got.kicked) == (5, {}, {})


def test_where_nobody_has_the_expected_revision_the_newest_is_elected() -> None:
    got = elect([Offer(3, (Key(1),)), Offer(4, (Key(2),)), Offer(3, (Key(1),))], 5)
    assert (got.revision, got.winner, got.sources) == (5, 1, {0: 1, 2: 1})


def test_only_what_differs_moves() -> None:
    keys = [(Key(1, "a"), Key(1, "b"), Key(1, "c")), (Key(1, "a"), Key(2, "b"), Key(1, "c"))]
    assert elect([Offer(1, keys[0]), Offer(1, keys[0]), Offer(1, keys[1])], 0).received == {2: [1]}


def test_what_may_differ_goes_to_those_behind_only() -> None:
    def keys(free: int) -> tuple[Key, ...]:
        return Key(1), Key(free, "rng", free=True)

    got = elect([Offer(5, keys(1)), Offer(5, keys(2)), Offer(4, keys(3))], 5)
    assert (got.received, got.kicked) == ({2: [1]}, {})


@pytest.mark.parametrize("other", [RECEIVE, SEND])
def test_where_one_enforces_the_others_must(other: int) -> None:
    got = elect([*offers_of(1, strategy=other), *offers_of(2, 2), *offers_of(1, strategy=other)], 0)
    assert set(got.kicked) == {0, 3}
    assert all("enforce" in reason for reason in got.kicked.values())


def test_who_only_receives_has_no_vote() -> None:
    got = elect([*offers_of(2, 2, strategy=RECEIVE), *offers_of(1, strategy=SEND)], 0)
    assert (got.winner, got.sources, got.kicked) == (2, {0: 2, 1: 2}, {})


def test_a_revision_that_nobody_could_send_is_not_the_first() -> None:
    got = elect([*offers_of(1, revision=4, strategy=RECEIVE), *offers_of(1, revision=3, strategy=SEND)], 0)
    assert (got.revision, set(got.kicked)) == (3, {0})


def test_a_sender_of_another_content_is_kicked() -> None:
    got = elect([*offers_of(2, strategy=SEND), *offers_of(1, strategy=RECEIVE), *offers_of(3, strategy=SEND)], 0)
    assert (got.winner, set(got.kicked), got.sources) == (0, {2}, {1: 0})


def test_where_all_only_receive_all_are_kicked() -> None:
    assert set(elect(offers_of(1, 1, 1, strategy=RECEIVE), 0).kicked) == {0, 1, 2}


@pytest.mark.parametrize(
    ("odd", "word"),
    [
        (Key(1, "v"), "'v' (float32, 8 elements)"),
        (Key(1, dtype=DOUBLE), "'w' (float64, 8 elements)"),
        (Key(1, count=9), "'w' (float32, 9 elements)"),
        (Key(1, free=True), "'w' (float32, 8 elements, may differ)"),
    ],
)
def test_another_tensor_is_kicked_with_both_sorts(odd: Key, word: str) -> None:
    got = elect([Offer(1), Offer(1, (odd,)), Offer(1)], 0)
    assert got.kicked == {1: f"its tensor {word} is not the elected 'w' (float32, 8 elements)"}
    assert got.sources == {}


@pytest.mark.parametrize("odd", [(), (Key(1), Key(1, "v"))])
def test_another_number_of_tensors_is_kicked_with_both_numbers(odd: tuple[Key, ...]) -> None:
    got = elect([Offer(1), Offer(1, odd), Offer(1)], 0)
    assert got.kicked == {1: f"it has {len(odd)} tensors, the elected content of peer 3 has 1"}


def test_an_unknown_strategy_is_kicked() -> None:
    got = elect([Offer(1, strategy=3), Offer(1), Offer(1)], 0)
    assert list(got.kicked) == [0]
    assert "3" in got.kicked[0]
