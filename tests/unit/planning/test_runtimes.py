"""The runtime predictor on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest

from scheduler.planning import runtimes
from scheduler.planning.runtimes import (
    BUCKETS,
    EDGES_MS,
    STRENGTH,
    Accuracy,
    JobFeatures,
    Predicted,
    RuntimeModel,
    bucket_of,
)

S = 1000
HOUR = 3600 * S
DAY = 24 * HOUR
NO_LIMIT = 1 << 42


def features(
    institution: str = "uni", user: str = "ann", name: str = "train", gpu_milli: int = 1000, project: str = "default"
) -> JobFeatures:
    return JobFeatures(institution, project, user, name, gpu_milli)


def taught(*runtimes_ms: int, of: JobFeatures | None = None) -> RuntimeModel:
    model = RuntimeModel()
    for each in runtimes_ms:
        model.observe(of or features(), each)
    return model


def within_a_bucket(found_ms: int, true_ms: int) -> bool:
    return abs(bucket_of(found_ms) - bucket_of(true_ms)) <= 1


# --- buckets ----------------------------------------------------------------------------------------------------------


def test_four_buckets_to_the_octave_each_from_its_edge_up_to_the_next() -> None:
    assert EDGES_MS[:9] == (1000, 1189, 1414, 1682, 2000, 2378, 2828, 3364, 4000)
    assert [bucket_of(each) for each in (1000, 1188, 1189, 1999, 2000, 2001)] == [0, 0, 1, 3, 4, 4]


def test_what_is_outside_of_all_buckets_is_in_the_first_or_the_last() -> None:
    assert [bucket_of(each) for each in (-5, 0, 1, 999)] == [0, 0, 0, 0]
    assert EDGES_MS[-1] == 1000 << 36
    assert [bucket_of(each) for each in (EDGES_MS[-1] - 1, EDGES_MS[-1], 1 << 60)] == [BUCKETS - 1] * 3


# --- nothing seen -----------------------------------------------------------------------------------------------------


def test_before_anything_is_seen_all_magnitudes_up_to_a_week_are_as_likely() -> None:
    found = RuntimeModel().predict(features(), NO_LIMIT, 0)

    assert found.samples == 0
    # Evenly spread over log2 from a second to a week (604,800 s): half of it is below sqrt(1 s * 604,800 s), nine tenths below 604,800^0.9 s.
    assert within_a_bucket(found.p50_ms, round(604_800**0.5 * S))
    assert within_a_bucket(found.p90_ms, round(604_800**0.9 * S))
    # The mean of that distribution is (b - a) / ln(b / a); the last bucket that counts ends a little before the week.
    longest = EDGES_MS[bucket_of(7 * DAY)] / S
    assert found.expected_remaining_ms == pytest.approx((longest - 1) / math.log(longest) * S, rel=0.02)


def test_beyond_all_that_was_ever_thought_possible_as_long_again_is_expected() -> None:
    assert RuntimeModel().predict(features(), NO_LIMIT, 30 * DAY) == Predicted(
        30 * DAY, 30 * DAY, NO_LIMIT - 30 * DAY, 0
    )
    assert RuntimeModel().predict(features(), 40 * DAY, 30 * DAY) == Predicted(10 * DAY, 10 * DAY, 10 * DAY, 0)


# --- the limit --------------------------------------------------------------------------------------------------------


def test_nothing_is_predicted_beyond_the_limit() -> None:
    model = taught(*[HOUR] * 50)
    found = model.predict(features(), 600 * S, 0)
    # What was thought before anything was seen has a hundred-thousandth left.
    assert found.expected_remaining_ms == pytest.approx(600 * S, abs=10)
    assert (found.p50_ms, found.p90_ms) == (600 * S, 600 * S)
    found = model.predict(features(), 600 * S, 599 * S)
    assert (found.expected_remaining_ms, found.p50_ms, found.p90_ms) == (S,) * 3


@pytest.mark.parametrize("elapsed_ms", [600 * S, 601 * S, 30 * DAY])
def test_at_its_limit_or_beyond_a_job_has_a_millisecond_left(elapsed_ms: int) -> None:
    found = taught(HOUR).predict(features(), 600 * S, elapsed_ms)
    assert (found.expected_remaining_ms, found.p50_ms, found.p90_ms) == (1, 1, 1)


def test_only_the_part_of_the_distribution_beyond_the_limit_is_cut() -> None:
    model = taught(*[60 * S, DAY] * 100)
    free, cut = (model.predict(features(), limit, 0).expected_remaining_ms for limit in (NO_LIMIT, HOUR))
    assert free == pytest.approx((60 * S + DAY) / 2, rel=0.05)
    assert cut == pytest.approx((60 * S + HOUR) / 2, rel=0.05)


# --- from the general to the specific ---------------------------------------------------------------------------------


def test_one_observation_counts_one_against_the_strength_of_what_was_thought_before_at_each_key() -> None:
    model = taught(HOUR)
    parts, _, samples = model._mixture(features())
    # The parts that are not at an hour are those of the beginning, thinned once for each of the five keys.
    thinned = (STRENGTH / (STRENGTH + 1)) ** 5
    before = RuntimeModel()._mixture(features())[0]
    assert samples == 1
    assert parts[0] == pytest.approx(before[0] * thinned)
    assert parts[bucket_of(HOUR)] == pytest.approx(1 - thinned + before[bucket_of(HOUR)] * thinned)
    assert sum(parts) == pytest.approx(1)


def test_samples_are_those_of_the_most_specific_key_that_is_known() -> None:
    model = RuntimeModel()
    model.observe(features("other"), HOUR)
    for _ in range(2):
        model.observe(features(user="bob", gpu_milli=8000), HOUR)
    for _ in range(3):
        model.observe(features(user="bob"), HOUR)
    for _ in range(4):
        model.observe(features(name="test"), HOUR)
    asked = {
        "all": features("third"),
        "institution": features(gpu_milli=500),
        "gpus": features(user="eve"),
        "user": features(),
        "name": features(name="test"),
    }
    assert {key: model.predict(of, NO_LIMIT, 0).samples for key, of in asked.items()} == {
        "all": 10,
        "institution": 9,
        "gpus": 7,
        "user": 4,
        "name": 4,
    }


def test_the_first_job_of_a_name_is_predicted_like_the_others_of_its_user_and_the_hundredth_like_its_name() -> None:
    model = taught(*[60 * S] * 40)
    new = features(name="new")
    assert within_a_bucket(model.predict(new, NO_LIMIT, 0).p50_ms, 60 * S)
    expected = []
    for _ in range(100):
        model.observe(new, HOUR)
        expected.append(model.predict(new, NO_LIMIT, 0).expected_remaining_ms)
    assert expected == sorted(expected)
    assert expected[0] < HOUR / 2
    assert expected[-1] == pytest.approx(HOUR, rel=0.01)
    assert within_a_bucket(model.predict(features(), NO_LIMIT, 0).p50_ms, 60 * S)


def test_the_project_says_nothing_but_the_size_of_the_request_does() -> None:
    model = taught(*[HOUR] * 30)
    assert model.predict(features(project="p"), NO_LIMIT, 0) == model.predict(features(), NO_LIMIT, 0)
    for _ in range(30):
        model.observe(features(gpu_milli=8000), 60 * S)
    assert within_a_bucket(model.predict(features(gpu_milli=8000), NO_LIMIT, 0).p50_ms, 60 * S)
    assert within_a_bucket(model.predict(features(), NO_LIMIT, 0).p50_ms, HOUR)


def test_older_runtimes_fade() -> None:
    model = taught(*[HOUR] * 200, *[60 * S] * 60)
    # 0.98^60 = 0.30 of what the older ones counted is left.
    assert within_a_bucket(model.predict(features(), NO_LIMIT, 0).p50_ms, 60 * S)
    assert within_a_bucket(model.predict(features(), NO_LIMIT, 0).p90_ms, HOUR)


# --- a job that runs --------------------------------------------------------------------------------------------------


def test_what_is_left_grows_as_a_job_of_a_heavy_tail_runs_on() -> None:
    model = taught(*[each for octave in range(12) for each in [S << octave] * (2 + (12 - octave) // 2)] * 4)
    left = [
        model.predict(features(), NO_LIMIT, elapsed).expected_remaining_ms for elapsed in (0, 4 * S, 64 * S, 600 * S)
    ]
    assert left == sorted(left)
    assert left[-1] > 2 * left[0]


def test_what_is_left_shrinks_where_all_run_equally_long() -> None:
    model = taught(*[HOUR] * 400)
    left = [model.predict(features(), NO_LIMIT, each * HOUR // 4) for each in range(4)]
    assert [each.p50_ms for each in left] == pytest.approx([HOUR, HOUR * 3 // 4, HOUR // 2, HOUR // 4], rel=0.01)


def test_a_job_that_outlives_the_short_ones_is_one_of_the_long() -> None:
    model = taught(*[60 * S, DAY] * 100)
    assert model.predict(features(), NO_LIMIT, 120 * S).p50_ms == pytest.approx(DAY, rel=0.05)


def test_of_the_bucket_a_job_is_in_the_part_that_is_not_over_counts() -> None:
    low, high = EDGES_MS[40], EDGES_MS[41]
    parts, sums = [0.0] * BUCKETS, [0.0] * BUCKETS
    parts[40], sums[40] = 1.0, float(low)
    left = runtimes._beyond(parts, sums, (low + high) // 2)
    assert len(left) == 1
    assert left[0][0] == pytest.approx(0.5, abs=1e-3)
    assert left[0][1] == pytest.approx((high - low) / 4, rel=1e-3)
    assert runtimes._beyond(parts, sums, high) == []


# --- accuracy ---------------------------------------------------------------------------------------------------------


def test_no_claim_is_made_before_anything_was_predicted_from_something() -> None:
    assert RuntimeModel().accuracy() == Accuracy(0, 0, 0)
    assert taught(HOUR).accuracy() == Accuracy(0, 0, 0)
    assert taught(HOUR, HOUR).accuracy().samples == 1


def test_the_error_is_the_distance_in_octaves_to_the_median_that_was_predicted() -> None:
    for runtime_ms in (HOUR, 3 * HOUR, 12 * HOUR, HOUR // 5):
        model = taught(*[HOUR] * 100)
        told = model.predict(features(), NO_LIMIT, 0)
        model._errors.clear()
        model.observe(features(), runtime_ms)
        found = model.accuracy()
        assert found.median_error_milli == pytest.approx(abs(math.log2(runtime_ms / told.p50_ms)) * 1000, abs=2)
        assert found.within_p90_milli == (1000 if runtime_ms <= HOUR else 0)


def test_the_median_error_and_coverage_of_what_repeats_itself() -> None:
    accuracy = taught(*[HOUR] * 300).accuracy()
    assert accuracy.samples == 299
    assert accuracy.median_error_milli < 100
    assert accuracy.within_p90_milli >= 950


def test_nine_of_ten_are_within_the_p90_where_runtimes_are_spread() -> None:
    # 97 runtimes, evenly over the eight octaves from 100 s, in a scrambled order.
    accuracy = taught(*[round(100 * S * 2 ** (each * 37 % 97 / 12)) for each in range(1500)]).accuracy()
    assert accuracy.samples == 1000
    assert 890 <= accuracy.within_p90_milli <= 950
    # The distance of a uniform draw to the middle of eight octaves is two in the median.
    assert accuracy.median_error_milli == pytest.approx(2000, abs=200)


def test_nine_of_ten_are_within_the_p90_where_all_are_alike() -> None:
    # All in one bucket: its middle would be exceeded by half of them.
    low, high = EDGES_MS[60], EDGES_MS[61]
    runtimes_ms = [low + (each * 37 % 97) * (high - low) // 97 for each in range(1000)]
    assert taught(*runtimes_ms).accuracy().within_p90_milli >= 970
    assert taught(*runtimes_ms).predict(features(), NO_LIMIT, 0).p90_ms == high


def test_only_the_last_thousand_are_judged() -> None:
    model = taught(*[HOUR] * 100)
    model._errors = [(9000, False)] * 1000
    for _ in range(1000):
        model.observe(features(), HOUR)
    assert model.accuracy().samples == 1000
    assert model.accuracy().median_error_milli < 100


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_histograms_used_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "MAX_KEYS", 10)
    model = RuntimeModel()
    for number in range(20):
        model.observe(features(name=f"job-{number}"), HOUR)
        assert len(model._kept) <= 10
    # The four keys that all share are always in use, so that six names are left.
    samples = [model.predict(features(name=f"job-{number}"), NO_LIMIT, 0).samples for number in range(20)]
    assert samples == [20] * 14 + [1] * 6
    model.observe(features(name="job-14"), HOUR)
    model.observe(features(name="job-20"), HOUR)
    samples = [model.predict(features(name=f"job-{number}"), NO_LIMIT, 0).samples for number in (14, 15, 16)]
    assert samples == [2, 22, 1]


def test_mixtures_that_are_kept_are_bounded_and_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "MAX_KEYS", 100)
    model = taught(*[HOUR] * 10)
    for number in range(50):
        model.predict(features(name=f"job-{number}"), NO_LIMIT, 0)
        assert len(model._mixed) <= 11
    before = model.predict(features(), NO_LIMIT, 0)
    assert model.predict(features(), NO_LIMIT, 0) == before
    model.observe(features("other"), 60 * S)
    assert model.predict(features(), NO_LIMIT, 0) != before


def test_a_runtime_of_nothing_is_a_millisecond() -> None:
    model = taught(*[0] * 60, -5)
    found = model.predict(features(), NO_LIMIT, 0)
    assert (found.p50_ms, found.samples) == (1, 61)
