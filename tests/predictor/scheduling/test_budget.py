"""predictor.scheduling.budget: what is held at once stays bounded, and no caller shuts another out."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.errors import Overloaded
from predictor.scheduling import Budget, Place

CALLERS = ["a", "b", "c"]


def test_what_is_held_is_counted_and_given_back():
    budget = Budget("requests", 3)
    with budget.hold("a", 1), budget.hold("b", 1.5):
        assert budget.total == 2.5
    assert budget.total == 0


def test_where_it_is_used_up_the_sentence_names_what_how_much_and_when_to_come_again():
    budget = Budget("seconds of audio", 60, lambda: 7)
    with budget.hold("a", 60.2):
        with pytest.raises(Overloaded, match="60 seconds of audio are waiting and the limit is 60; try again in 7 s"):
            budget.take("a", 1)
        assert budget.total == 60.2


def test_up_to_the_limit_a_caller_that_is_alone_has_it_all():
    budget = Budget("requests", 3)
    for _ in range(3):
        budget.take("a", 1)
    with pytest.raises(Overloaded):
        budget.take("a", 1)


def test_one_request_alone_is_never_too_large():
    budget = Budget("seconds of audio", 1)
    with budget.hold("a", 1_000_000):
        assert budget.total == 1_000_000
    assert budget.total == 0


def test_whoever_floods_the_server_shuts_nobody_else_out():
    budget = Budget("requests", 4)
    for _ in range(4):
        budget.take("flood", 1)
    for _ in range(2):  # half of the limit is an equal share of two
        budget.take("quiet", 1)
    for caller in ("flood", "quiet"):
        with pytest.raises(Overloaded):
            budget.take(caller, 1)
    budget.give("flood", 1)
    with pytest.raises(Overloaded):
        budget.take("flood", 1)
    budget.take("third", 1)


def test_many_callers_hold_no_more_than_twice_the_limit():
    budget = Budget("requests", 10)
    refused = 0
    for number in range(100):
        try:
            budget.take(f"caller-{number}", 1)
        except Overloaded:
            refused += 1
    assert (budget.total, refused) == (20, 80)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, GeneratorExit])
def test_whatever_ends_a_request_gives_its_share_back(error):
    budget = Budget("bytes", 2)
    for _ in range(5):
        with pytest.raises(error), budget.hold("a", 2):
            raise error
    assert budget.total == 0


def test_who_is_refused_holds_nothing_and_has_nothing_to_give_back():
    budget = Budget("requests", 1)
    with budget.hold("a", 1):
        for _ in range(3):
            with pytest.raises(Overloaded), budget.hold("a", 1):
                pytest.fail("a second request was let in")
        assert budget.total == 1
    assert budget.total == 0


def test_an_amount_of_nothing_may_be_held_twice():
    budget = Budget("bytes", 1)
    with budget.hold("a", 0), budget.hold("a", 0):
        pass
    assert budget.total == 0


amounts = st.one_of(st.integers(1, 40), st.floats(0.01, 40))


@given(st.floats(1, 100), st.lists(st.tuples(st.sampled_from(CALLERS), amounts, st.booleans())))
def test_at_any_time_the_total_is_the_sum_and_within_twice_the_limit_and_one_request(limit, steps):
    budget, held = Budget("units", limit), []
    for caller, amount, give_back in steps:
        if give_back and held:
            budget.give(*held.pop(0))
        before = budget.total
        try:
            budget.take(caller, amount)
        except Overloaded:
            assert before >= limit
            own = sum(a for c, a in held if c == caller)
            share = limit / len({c for c, _ in held} | {caller})
            assert own >= share - 1e-3 or before >= 2 * limit
        else:
            assert before < 2 * limit
            held.append((caller, amount))
        assert budget.total == pytest.approx(sum(a for _, a in held), abs=1e-4)
    for caller, amount in held:
        budget.give(caller, amount)
    assert budget.total == 0


# Places


def test_a_request_that_is_let_in_is_let_in_whole_and_gives_everything_back():
    told = []
    budget = Budget("seconds of audio", 10)
    with Place(budget, "a", told.append) as place:
        for _ in range(3):
            place.take(8)
        assert budget.total == 24
        with pytest.raises(Overloaded), Place(budget, "a", told.append) as other:
            other.take(1)
    assert budget.total == 0
    assert told == [8, 8, 8, -8, -8, -8]


def test_nothing_is_taken_for_a_request_that_has_ended():
    told = []
    budget = Budget("seconds of audio", 10)
    with Place(budget, "a", told.append) as place:
        pass
    place.take(5)
    assert (budget.total, told) == (0, [])


def test_places_taken_in_many_threads_add_up():
    budget = Budget("seconds of audio", 1e9)
    with Place(budget, "a", lambda _: None) as place:
        threads = [threading.Thread(target=lambda: [place.take(0.1) for _ in range(500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert budget.total == pytest.approx(200)
    assert budget.total == 0
