"""Loops: found where they begin, and not where there is none."""

from collections.abc import Sequence

from hypothesis import assume, given
from hypothesis import strategies as st

from kvx.scoring.loops import (
    MIN_REPEATED,
    PERIOD_RULE,
    TIMES,
    WINDOW_RULE,
    Loop,
    find_loop,
    period_loop,
    window_loop,
)
from kvx.scoring.repetition import WINDOW

tokens = st.lists(st.integers(0, 3), max_size=90)
body = st.lists(st.integers(0, 200), min_size=1, max_size=30, unique=True)
prefix = st.lists(st.integers(1000, 2000), max_size=40, unique=True)


def by_hand(ids: Sequence[int]) -> Loop | None:
    """Both rules, as their definitions read and as slow as that is."""
    ids, n = list(ids), len(ids)
    places: dict[tuple[int, ...], list[int]] = {}
    for i in range(n - WINDOW + 1):
        places.setdefault(tuple(ids[i : i + WINDOW]), []).append(i)
    found = [
        (at[1], 0, Loop(at[1], WINDOW_RULE, at[1] - at[0]))
        for at in places.values()
        if len(at) >= TIMES
    ]
    for period in range(1, n):
        onset = n
        while onset > period and ids[onset - 1] == ids[onset - 1 - period]:
            onset -= 1
        if n - onset >= max(2 * period, MIN_REPEATED):
            found.append((onset, period, Loop(onset, PERIOD_RULE, period)))
    return min(found)[2] if found else None


@given(tokens)
def test_both_rules_do_what_their_definitions_say(ids: list[int]) -> None:
    assert find_loop(ids) == by_hand(ids)


@given(prefix, body, st.integers(0, 60))
def test_a_planted_loop_is_found_where_its_second_repetition_begins(
    before: list[int], repeated: list[int], more: int
) -> None:
    p = len(repeated)
    length = 2 * p + WINDOW + more  # what the window rule needs
    ids = before + [repeated[i % p] for i in range(length)]
    assert find_loop(ids) == Loop(len(before) + p, WINDOW_RULE, p)
    by_period = period_loop(ids)
    if length - p >= max(2 * p, MIN_REPEATED):
        assert by_period == Loop(len(before) + p, PERIOD_RULE, p)
    else:
        assert by_period is None


@given(prefix, body)
def test_short_loops_at_the_end_are_seen_by_their_period(
    before: list[int], repeated: list[int]
) -> None:
    p = len(repeated)
    length = p + max(2 * p, MIN_REPEATED)
    assume(length < 2 * p + WINDOW)
    ids = before + [repeated[i % p] for i in range(length)]
    assert window_loop(ids) is None
    assert find_loop(ids) == Loop(len(before) + p, PERIOD_RULE, p)
    assert find_loop(ids[:-1]) is None  # one token too few
    assert find_loop([*ids, 3000]) is None  # it stopped by itself


@given(st.lists(st.integers(), unique=True, max_size=300))
def test_text_that_repeats_nothing_never_loops(ids: list[int]) -> None:
    assert find_loop(ids) is None


@given(tokens, prefix)
def test_what_stands_before_moves_the_onset_and_nothing_else(
    ids: list[int], before: list[int]
) -> None:
    loop, moved = find_loop(ids), find_loop(before + ids)
    if loop is None:
        assert moved is None
    else:
        assert moved == Loop(loop.onset + len(before), loop.rule, loop.period)


@given(tokens, st.lists(st.integers(0, 3), max_size=40))
def test_a_loop_that_the_window_rule_saw_stays_seen(ids: list[int], after: list[int]) -> None:
    loop = window_loop(ids)
    if loop is not None:
        later = find_loop(ids + after)
        assert later is not None
        assert later.onset <= loop.onset


@given(tokens)
def test_the_names_of_tokens_do_not_matter(ids: list[int]) -> None:
    assert find_loop([f"word {i}" for i in ids]) == find_loop(ids)


@given(tokens)
def test_a_loop_repeats_what_stands_one_period_before(ids: list[int]) -> None:
    loop = find_loop(ids)
    if loop is not None:
        span = ids[loop.onset : loop.onset + MIN_REPEATED]
        assert span == ids[loop.onset - loop.period :][: len(span)]


def test_worked_examples() -> None:
    assert find_loop([]) is None
    assert find_loop([7] * 16) is None
    assert find_loop([7] * 17) == Loop(1, PERIOD_RULE, 1)
    assert find_loop([7] * 22) == Loop(1, WINDOW_RULE, 1)
    # a loop in the middle that the text gets out of
    text = [*range(100, 130), *([1, 2, 3] * 9), *range(130, 160)]
    assert find_loop(text) == Loop(33, WINDOW_RULE, 3)
    # lines that differ in one number do not repeat: 1. yes 2. yes 3. yes ...
    assert find_loop([t for i in range(60) for t in (i + 10, 1, 2, 3)]) is None
    # three lines that each end in a row of dots: the lines loop, not only the dots
    assert find_loop([6, *([5] * 17)] * 3) == Loop(18, PERIOD_RULE, 18)
