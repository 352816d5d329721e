"""The runtime predictor on histories drawn at random."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planning.runtimes import EDGES_MS, JobFeatures, RuntimeModel, bucket_of

WEEK_MS = 7 * 86_400_000
NO_LIMIT = 1 << 42
FEATURES = st.builds(
    JobFeatures,
    institution=st.sampled_from(["a", "b"]),
    project=st.sampled_from(["p", "q"]),
    user=st.sampled_from(["ann", "bob"]),
    name=st.sampled_from(["train", "test"]),
    gpu_milli=st.sampled_from([0, 500, 8000]),
)
# Evenly over magnitudes, as runtimes are, and some that no bucket is meant for.
RUNTIME = st.one_of(
    st.builds(lambda octave, rest: (1 << octave) + rest % (1 << octave), st.integers(0, 36), st.integers(0, 1 << 36)),
    st.sampled_from([0, -1, 999, 1000, EDGES_MS[-1], 1 << 48]),
)
HISTORY = st.lists(st.tuples(FEATURES, RUNTIME), max_size=12)
TIME = st.one_of(st.integers(0, 10_000), st.integers(0, 5 * WEEK_MS), st.sampled_from([0, *EDGES_MS[:120:7]]))


def taught(history: list[tuple[JobFeatures, int]]) -> RuntimeModel:
    model = RuntimeModel()
    for features, runtime_ms in history:
        model.observe(features, runtime_ms)
    return model


@given(HISTORY, FEATURES, TIME, TIME)
def test_predictions_stay_between_a_millisecond_and_the_limit_and_in_order(
    history: list[tuple[JobFeatures, int]], features: JobFeatures, limit_ms: int, elapsed_ms: int
) -> None:
    found = taught(history).predict(features, limit_ms, elapsed_ms)
    most = max(1, limit_ms - elapsed_ms)
    assert 1 <= found.expected_remaining_ms <= most
    assert 1 <= found.p50_ms <= found.p90_ms <= most
    assert 0 <= found.samples <= len(history)


@given(HISTORY, FEATURES, TIME, TIME, TIME)
def test_a_higher_limit_never_makes_a_job_shorter(
    history: list[tuple[JobFeatures, int]], features: JobFeatures, limit_ms: int, more_ms: int, elapsed_ms: int
) -> None:
    model = taught(history)
    lower = model.predict(features, limit_ms, elapsed_ms)
    higher = model.predict(features, limit_ms + more_ms, elapsed_ms)
    assert lower.expected_remaining_ms <= higher.expected_remaining_ms
    assert (lower.p50_ms, lower.p90_ms) <= (higher.p50_ms, higher.p90_ms)
    assert lower.samples == higher.samples


@given(HISTORY, st.lists(st.tuples(FEATURES, TIME, TIME), min_size=1, max_size=3))
def test_the_same_history_gives_the_same_answers_whatever_was_asked_between(
    history: list[tuple[JobFeatures, int]], questions: list[tuple[JobFeatures, int, int]]
) -> None:
    asked, silent = RuntimeModel(), taught(history)
    for features, runtime_ms in history:
        for question in questions:
            asked.predict(*question)
        asked.observe(features, runtime_ms)
    assert [asked.predict(*each) for each in questions] == [silent.predict(*each) for each in questions]
    assert asked.accuracy() == silent.accuracy()


@given(HISTORY, st.lists(FEATURES, min_size=12, max_size=12), FEATURES, TIME)
def test_of_other_institutions_only_the_runtimes_matter(
    history: list[tuple[JobFeatures, int]], others: list[JobFeatures], features: JobFeatures, elapsed_ms: int
) -> None:
    """What others call their jobs, who sends them and how large they are says nothing here: only the key over everything is shared."""
    mine = features._replace(institution="a")
    elsewhere = [
        (of if of.institution == "a" else other._replace(institution=f"not-a-{other.institution}"), runtime_ms)
        for (of, runtime_ms), other in zip(history, others, strict=False)
    ]
    assert taught(history).predict(mine, NO_LIMIT, elapsed_ms) == taught(elsewhere).predict(mine, NO_LIMIT, elapsed_ms)


@settings(max_examples=25)
@given(HISTORY, FEATURES, st.integers(10_000, WEEK_MS))
def test_many_equal_runtimes_are_predicted_to_within_a_bucket(
    history: list[tuple[JobFeatures, int]], features: JobFeatures, runtime_ms: int
) -> None:
    # Of its own keys one week in a hundred would rule the mean, rightly; of others it must not.
    plausible = [(of._replace(institution="other"), min(max(1, each), WEEK_MS)) for of, each in history]
    model = taught([*plausible, *[(features, runtime_ms)] * 100])
    found = model.predict(features, NO_LIMIT, 0)
    for each in (found.expected_remaining_ms, found.p50_ms, found.p90_ms):
        assert abs(bucket_of(each) - bucket_of(runtime_ms)) <= 1
    assert found.p90_ms >= runtime_ms
    assert found.samples == 100


@given(HISTORY)
def test_accuracy_is_of_as_many_as_were_predicted_and_its_parts_are_parts(
    history: list[tuple[JobFeatures, int]],
) -> None:
    found = taught(history).accuracy()
    assert found.samples == max(0, len(history) - 1)
    assert 0 <= found.within_p90_milli <= 1000
    assert found.median_error_milli >= 0
