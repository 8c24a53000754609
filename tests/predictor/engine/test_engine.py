"""predictor.engine: a batch's rule, which is what an engine tells the scheduler about itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.engine import BatchRule

lengths = st.lists(st.integers(1, 3_000), min_size=1, max_size=40)
rules = st.builds(
    BatchRule,
    max_rows=st.integers(1, 32),
    max_padded_frames=st.integers(0, 30_000),
    max_padding_share=st.floats(0, 1),
)


def test_the_default_is_a_cpus_one_at_a_time_and_at_once():
    rule = BatchRule(streams=8)
    assert (rule.max_rows, rule.wait_seconds) == (1, 0.0)
    assert rule.fits([3_000])
    assert not rule.fits([1, 1])


@given(rules, st.integers(1, 1_000_000))
def test_an_utterance_alone_always_fits(rule, length):
    assert rule.fits([length])


@given(rules, lengths)
def test_several_fit_within_every_limit_and_no_further(rule, rows):
    longest, cost = max(rows), len(rows) * max(rows)
    assert rule.cost(rows) == cost == sum(longest for _ in rows)
    within = (
        len(rows) <= rule.max_rows
        and cost <= rule.max_padded_frames
        and sum(longest - length for length in rows) <= rule.max_padding_share * cost
    )
    assert rule.fits(rows) == (within or len(rows) == 1)


@given(rules, lengths, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_makes_no_difference(rule, rows, random):
    shuffled = random.sample(rows, len(rows))
    assert rule.fits(rows) == rule.fits(shuffled)
    assert rule.cost(rows) == rule.cost(shuffled)


@given(rules, lengths)
def test_where_a_row_of_the_longest_does_not_fit_no_row_does(rule, rows):
    """What the queue relies on when it says that a batch is full."""
    if rule.fits(rows) and not rule.fits([*rows, max(rows)]):
        assert not any(rule.fits([*rows, length]) for length in {1, min(rows), max(rows) // 2 + 1, max(rows) + 1})


@pytest.mark.parametrize(
    ("rows", "fit"), [([100, 100], True), ([100, 75], True), ([100, 49], False), ([100, 50], True)]
)
def test_padding_may_be_so_much_of_the_whole(rows, fit):
    assert BatchRule(max_rows=2, max_padded_frames=200, max_padding_share=0.25).fits(rows) == fit
