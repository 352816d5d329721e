"""The limiter against a plain token bucket in exact fractions, and what it may never do."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from scheduler.governance.limits import SECOND_NS, Limiter, Limits, Rate

STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3 * SECOND_NS), st.integers(0, 12)), min_size=1, max_size=60
)
# Rates that divide a second, so that whole nanoseconds are exact.
AMOUNTS = st.sampled_from([1, 2, 5, 8, 1000, SECOND_NS])


class Bucket:
    """A token bucket as textbooks draw it."""

    def __init__(self, per_s: int, burst: int) -> None:
        self.per_ns, self.burst = Fraction(per_s, SECOND_NS), burst
        self.tokens, self.at_ns = Fraction(burst), 0

    def passes(self, units: int, now_ns: int) -> bool:
        self.tokens = min(Fraction(self.burst), self.tokens + self.per_ns * (now_ns - self.at_ns))
        self.at_ns = now_ns
        if units and self.tokens < min(units, self.burst):
            return False
        # More than a bucket holds leaves a debt.
        self.tokens -= units
        return True


@given(STEPS, AMOUNTS, st.integers(1, 10))
def test_a_rate_is_a_token_bucket(steps: list[tuple[str, int, int]], per_s: int, burst: int) -> None:
    rate, buckets = Rate("x", per_s, SECOND_NS, burst), {key: Bucket(per_s, burst) for key in "abc"}
    now_ns = 0
    for key, gap_ns, units in steps:
        now_ns += gap_ns
        if units == 0:
            continue
        passed = rate.wait_ns(key, units, now_ns) == 0
        assert passed == buckets[key].passes(units, now_ns)
        if passed:
            rate.take(key, units, now_ns)


@given(STEPS, AMOUNTS, st.integers(1, 10))
def test_whoever_waits_as_told_passes_and_not_a_moment_sooner(
    steps: list[tuple[str, int, int]], per_s: int, burst: int
) -> None:
    rate, now_ns = Rate("x", per_s, SECOND_NS, burst), 0
    for key, gap_ns, units in steps:
        now_ns += gap_ns
        wait_ns = rate.wait_ns(key, units, now_ns)
        if wait_ns:
            assert rate.wait_ns(key, units, now_ns + wait_ns - 1) == 1
        now_ns += wait_ns
        assert rate.wait_ns(key, units, now_ns) == 0
        rate.take(key, units, now_ns)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "x", "y"]), st.booleans()), max_size=60))
def test_streams_are_counted_and_forgotten(steps: list[tuple[str, str, bool]]) -> None:
    limiter = Limiter(Limits(user_streams=2, institution_streams=3))
    open_: list[tuple[str, str]] = []
    for name, institution, opens in steps:
        user = name + institution
        if not opens and open_:
            limiter.close_stream(*open_.pop())
            continue
        of_user = sum(1 for each in open_ if each[0] == user)
        of_all = sum(1 for each in open_ if each[1] == institution) if institution else 0
        refusal = limiter.open_stream(user, institution)
        expected = "user_streams" if of_user >= 2 else "institution_streams" if of_all >= 3 else ""
        assert (refusal.limit if refusal else "") == expected
        if not refusal:
            open_.append((user, institution))
    for each in open_:
        limiter.close_stream(*each)
    assert limiter._streams == {}


def test_what_is_refused_is_not_counted_and_colleagues_share() -> None:
    limiter = Limiter(
        Limits(user_calls_per_s=1, user_calls_burst=2, institution_calls_per_s=1, institution_calls_burst=3)
    )
    calls = [limiter.call(user, "uni", False, 0) for user in ("ada", "ada", "ada", "abe", "abe")]
    assert [each and each.limit for each in calls] == [None, None, "user_calls", None, "institution_calls"]
    assert calls[2] == ("user_calls", 1000)
    assert limiter.call("ada", "uni", True, 0) is None
    assert [limiter.call("op", "", False, 0) is None for _ in range(3)] == [True, True, False]
    assert limiter.call("abe", "uni", False, SECOND_NS) is None


def test_days_and_rates_of_bytes() -> None:
    mib = 1 << 20
    limiter = Limiter(Limits(user_upload_mib_per_s=1, user_upload_mib_per_day=100, institution_upload_mib_per_day=150))
    assert limiter.upload("ada", "uni", 10 * mib, 0) is None
    assert limiter.upload("ada", "uni", mib, 0) == ("user_upload_rate", 1000)
    hour_ns = 3600 * SECOND_NS
    for hour in range(1, 10):
        assert limiter.upload("ada", "uni", 10 * mib, hour * hour_ns) is None
    assert limiter.upload("ada", "uni", 100 * mib, 10 * hour_ns).limit == "user_upload_day"
    for _ in range(4):
        limiter.upload("abe", "uni", 100 * mib, 10 * hour_ns)
    assert limiter.upload("eve", "uni", 100 * mib, 10 * hour_ns).limit == "institution_upload_day"


def test_no_limit_is_no_limit() -> None:
    limiter = Limiter(Limits(**dict.fromkeys(Limits.__dataclass_fields__, 0)))
    for _ in range(100):
        assert limiter.call("ada", "uni", True, 0) is None
        assert limiter.upload("ada", "uni", 1 << 60, 0) is None
        assert limiter.open_stream("ada", "uni") is None


def test_memory_is_bounded_by_who_calls_now() -> None:
    rate = Rate("x", 1, SECOND_NS, 5)
    for number in range(200_000):
        rate.take(str(number), 1, number * SECOND_NS // 100)
    assert len(rate) <= 10_001
    assert rate.wait_ns("199999", 5, 2_000 * SECOND_NS) > 0
