"""The decayed average of what was held keeps the laws of its formula, within rounding."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.resources import Resources
from scheduler.planning.usage import SCALE, Average, decayed

HALF_LIVES = st.one_of(st.integers(1, 10_000), st.sampled_from([3_600_000, 604_800_000, 10**11]))
AMOUNTS = st.integers(0, 10**10)
HELD = st.builds(Resources, AMOUNTS, AMOUNTS, AMOUNTS)
AVERAGES = st.builds(
    lambda amounts, rest, at: Average(*(amount * SCALE + rest for amount in amounts), at),
    HELD,
    st.integers(0, SCALE - 1),
    st.integers(0, 10**13),
)
TIMES = st.integers(0, 10**10)


@given(AVERAGES, HALF_LIVES)
def test_after_a_half_life_of_nothing_half_is_left(average: Average, half_life_ms: int) -> None:
    later = decayed(average, Resources(), average.as_of_ms + half_life_ms, half_life_ms)

    assert all(abs(2 * after - before) <= 1 for after, before in zip(later[:3], average[:3], strict=True))
    assert later.as_of_ms == average.as_of_ms + half_life_ms


@given(HELD, st.integers(1, 60), HALF_LIVES)
def test_after_n_half_lives_all_but_two_to_the_minus_n_is_there(held: Resources, count: int, half_life_ms: int) -> None:
    reached = decayed(Average(), held, count * half_life_ms, half_life_ms)

    for value, amount in zip(reached[:3], held, strict=True):
        assert abs(value - (amount * SCALE - Fraction(amount * SCALE, 2**count))) <= 1


@given(AVERAGES, HELD, HALF_LIVES)
def test_what_is_held_for_ever_is_the_average(average: Average, held: Resources, half_life_ms: int) -> None:
    for _ in range(80):
        average = decayed(average, held, average.as_of_ms + half_life_ms, half_life_ms)

    assert average.amount == held


@given(AVERAGES, HELD, TIMES, TIMES, HALF_LIVES)
def test_an_interval_may_be_split(
    average: Average, held: Resources, first: int, second: int, half_life_ms: int
) -> None:
    between = decayed(average, held, average.as_of_ms + first, half_life_ms)
    in_two = decayed(between, held, average.as_of_ms + first + second, half_life_ms)
    at_once = decayed(average, held, average.as_of_ms + first + second, half_life_ms)

    # The exponent is exact to 2^-60 of a half-life, which is worth that part of the distance from what is held.
    for number in range(3):
        distance = abs(average[number] - held[number] * SCALE)
        assert abs(in_two[number] - at_once[number]) <= 2 + distance // 2**57


@settings(max_examples=20)
@given(HELD, st.integers(1_000, 5_000))
def test_many_small_steps_add_up(held: Resources, steps: int) -> None:
    """Every millisecond of a week's half-life counts, also for one who changes something in each of them."""
    half_life_ms = 604_800_000
    average = Average()
    for now_ms in range(1, steps + 1):
        average = decayed(average, held, now_ms, half_life_ms)
    at_once = decayed(Average(), held, steps, half_life_ms)

    assert all(abs(a - b) <= steps // 2 + 2 + b // 2**20 for a, b in zip(average[:3], at_once[:3], strict=True))


@given(AVERAGES, HELD, HELD, TIMES, TIMES, HALF_LIVES, st.integers(0, 10**15))
def test_more_never_becomes_less(
    average: Average, held: Resources, more: Resources, ms: int, longer: int, half_life_ms: int, above: int
) -> None:
    now_ms = average.as_of_ms + ms
    base = decayed(average, held, now_ms, half_life_ms)
    higher = Average(average.cpu + above, average.memory, average.gpu, average.as_of_ms)

    assert decayed(average, held.plus(more), now_ms, half_life_ms)[:3] >= base[:3]
    assert decayed(higher, held, now_ms, half_life_ms)[0] >= base[0]
    assert (
        decayed(average, Resources(), now_ms + longer, half_life_ms)[0]
        <= decayed(average, Resources(), now_ms, half_life_ms)[0]
    )


@given(AVERAGES, HELD, HELD, TIMES, HALF_LIVES)
def test_it_stays_between_what_was_and_what_is(
    average: Average, held: Resources, more: Resources, ms: int, half_life_ms: int
) -> None:
    later = decayed(average, held, average.as_of_ms + ms, half_life_ms)

    for before, after, amount in zip(average[:3], later[:3], held, strict=True):
        assert min(before, amount * SCALE) <= after <= max(before, amount * SCALE)
    assert decayed(average, held, average.as_of_ms - ms, half_life_ms) == average
