"""The replay of queue traces: the published protocol and the product's policies on traces small enough to work out by hand, the
figures, bad input."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.replay import product, protocol, queue
from benchmarks.replay.trace import BadInput, Cluster, Job, Outcome, metrics, read_jobs

REPOSITORY = Path(__file__).resolve().parents[3]
HEADER = "job_id,num_gpu,submit_s,service_s,raw_duration_s,resched_overhead_s,model_name,priority"


EAST = {"institution": "e", "home_region": "east"}
WEST = {"institution": "w", "home_region": "west"}


def job(job_id, num_gpu, submit_s, service_s, overhead_s=0.0, name="", **tenancy):
    return Job(str(job_id), num_gpu, submit_s, service_s, overhead_s, name, **tenancy)


def ends(jobs, cluster, *, by_service):
    return [outcome.end_s for outcome in protocol.replay(jobs, cluster, by_service)]


def played(jobs, cluster, policy, *, learned=False):
    outcomes = product.replay(jobs, cluster, policy, learned=learned)
    return [(outcome.end_s, outcome.held_s, outcome.preemptions) for outcome in outcomes]


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "jobs.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


# One node of 4 GPUs. At 0 job A (4 GPUs, 100 s) starts. At 10 comes B (1 GPU, 50 s): A keeps 90 + its overhead of 2 s, since the arrival is
# an event, so 92 s x 4 or 92 s alone are both more than B's; B goes first and A stops. At 60 B ends; A has lost nothing while it waited.
def test_a_shorter_arrival_stops_the_longer_job_which_loses_its_overhead():
    jobs = [job("A", 4, 0, 100, 2), job("B", 1, 10, 50, 3)]
    outcomes = protocol.replay(jobs, Cluster(1, 4), by_service=False)
    assert [o.end_s for o in outcomes] == [152, 60]
    assert [o.preemptions for o in outcomes] == [1, 0]
    assert [o.held_s for o in outcomes] == [102, 50]
    assert [o.queue_s for o in outcomes] == [50, 0]


# Two nodes of 2 GPUs: the gang of 4 needs both. By time it goes first (30 < 40); by service (120 > 40) the single job goes first, and
# the gang is skipped; the other job of 1 GPU runs beside it, though it comes after the gang.
def test_service_counts_gpus_and_what_does_not_fit_is_skipped():
    jobs = [job("gang", 4, 0, 30), job("one", 1, 0, 40), job("long", 1, 0, 200)]
    assert ends(jobs, Cluster(2, 2), by_service=False) == [30, 70, 230]
    assert ends(jobs, Cluster(2, 2), by_service=True) == [70, 40, 230]


# The same, worked out: at 0 "one" (40) and "long" (200) run; at 40 the gang (120 GPU s) precedes "long" (160 s left), which stops.
def test_preemption_by_service_counts_once():
    jobs = [job("gang", 4, 0, 30), job("one", 1, 0, 40), job("long", 1, 0, 200)]
    outcomes = protocol.replay(jobs, Cluster(2, 2), by_service=True)
    assert [o.preemptions for o in outcomes] == [0, 0, 1]


def test_progress_since_the_last_event_is_never_below_zero():
    jobs = [job("A", 1, 0, 100, 50), job("B", 1, 10, 300, 0), job("C", 1, 20, 300, 0)]
    # A made 10 s twice and lost both, then runs from 20 to its end alone with its 100 s.
    assert ends(jobs, Cluster(1, 4), by_service=False)[0] == 120


def test_a_gang_takes_whole_nodes_and_a_small_one_stands_on_one_node():
    half = [job("a", 3, 0, 10), job("b", 3, 0, 10), job("two", 2, 0, 100)]
    # 2 GPUs are free, but on two nodes.
    assert ends(half, Cluster(2, 4), by_service=False) == [10, 10, 110]
    whole = [job("a", 1, 0, 10), job("gang", 8, 0, 100)]
    assert ends(whole, Cluster(2, 4), by_service=False) == [10, 110]


def test_regions_home_first_then_the_emptiest():
    cluster = Cluster(1, 4, ("east", "west"))
    here = {"institution": "i", "home_region": "east"}
    jobs = [job(n, 4, 0, 10 + n, **here) for n in range(3)]
    assert ends(jobs, cluster, by_service=False) == [10, 11, 22]
    split = [
        job("a", 2, 0, 10, **here),
        job("b", 2, 0, 10, institution="j", home_region="west"),
        job("c", 4, 0, 30, **here),
    ]
    # A gang never spans regions: 2 + 2 free GPUs do not hold 4.
    assert ends(split, cluster, by_service=False) == [10, 10, 40]


# --- the product's policies -------------------------------------------------------------------------------------------


# One node. "a" runs until 100; then the order in which the others came, or the shorter first.
@pytest.mark.parametrize(
    ("policy", "ends_s"),
    [("fifo", [100, 150, 160]), ("fair", [100, 150, 160]), ("shortest", [100, 160, 110]), ("suanli", [100, 160, 110])],
)
def test_the_order_is_that_of_the_policy(policy, ends_s):
    jobs = [job("a", 4, 0, 100), job("b", 4, 1, 50), job("c", 4, 2, 10)]
    assert [end for end, _, _ in played(jobs, Cluster(1, 4), policy)] == ends_s


@pytest.mark.parametrize("policy", queue.PRESETS)
def test_the_product_too_takes_whole_nodes_for_a_gang_and_one_node_for_a_small_job(policy):
    # Beside two jobs of 3 GPUs 2 GPUs are free, but on two nodes.
    half = [job("a", 3, 0, 10), job("b", 3, 0, 10), job("two", 2, 0, 100)]
    assert played(half, Cluster(2, 4), policy) == [(10, 10, 0), (10, 10, 0), (110, 100, 0)]
    whole = [job("a", 1, 0, 10), job("gang", 8, 0, 100)]
    assert played(whole, Cluster(2, 4), policy) == [(10, 10, 0), (110, 100, 0)]
    # 6 GPUs are more than one node, so they are two whole ones: nothing runs beside them.
    uneven = [job("gang", 6, 0, 100), job("small", 1, 1, 10)]
    assert played(uneven, Cluster(2, 4), policy) == [(100, 100, 0), (110, 10, 0)]


# "long" has 9,000 s left when the short job comes, which takes its place at once. It runs again from 1,100 s on for what it had left and the
# 7 s that it lost, once; a second stop costs it 7 s more.
def test_a_much_shorter_job_takes_the_place_and_the_overhead_is_lost_once_for_each_stop():
    jobs = [job("long", 4, 0, 10000, 7), job("short", 4, 1000, 100)]
    assert played(jobs, Cluster(1, 4), "suanli") == [(10107, 10007, 1), (1100, 100, 0)]
    again = [*jobs, job("another", 4, 3000, 100)]
    assert played(again, Cluster(1, 4), "suanli") == [(10214, 10014, 2), (1100, 100, 0), (3100, 100, 0)]
    for policy in ("fifo", "fair", "shortest"):
        assert played(jobs, Cluster(1, 4), policy) == [(10000, 10000, 0), (10100, 100, 0)]


def test_nobody_is_stopped_in_the_first_ten_minutes_or_for_one_that_is_not_much_shorter():
    jobs = [job("long", 4, 0, 10000, 7), job("short", 4, 100, 100)]
    assert played(jobs, Cluster(1, 4), "suanli") == [(10107, 10007, 1), (700, 100, 0)]
    # 9,000 s left are less than 1.25 times 8,000 s.
    jobs = [job("long", 4, 0, 10000, 7), job("alike", 4, 1000, 8000)]
    assert played(jobs, Cluster(1, 4), "suanli") == [(10000, 10000, 0), (18000, 8000, 0)]


def test_an_undisturbed_job_loses_nothing_whatever_happens_around_it():
    jobs = [job("long", 1, 0, 5000, 9), *(job(f"small-{n}", 1, 100 * n, 50, 9) for n in range(1, 5))]
    assert played(jobs, Cluster(1, 4), "suanli")[0] == (5000, 5000, 0)
    # By the published protocol it loses its overhead of 9 s at each event but its own end: four arrivals, four completions.
    assert ends(jobs, Cluster(1, 4), by_service=True)[0] == 5072


# At 900 "fill" leaves 6 GPUs beside "small" on the first node, "other" leaves 2 on the second. At 1,000 the large job needs a whole node: the small one
# moves beside "other", at the price of its overhead, though it is much shorter than the large one.
def test_a_small_job_moves_out_of_the_way_of_a_large_one():
    jobs = [job("small", 2, 0, 5000, 9), job("fill", 6, 0, 900), job("other", 6, 0, 1200), job("large", 8, 1000, 50000)]
    moved = played(jobs, Cluster(2, 8), "suanli")
    assert moved[0] == (5009, 5009, 1)
    assert moved[3] == (51000, 50000, 0)
    assert played(jobs, Cluster(2, 8), "shortest")[3] == (51200, 50000, 0)


# Each institution is guaranteed its home. "e" borrows the west while it is idle; at 100 "w" comes and has its own back at once, without the
# ten minutes. The job that was stopped runs on from 150: 900 s and the 5 s that it lost.
@pytest.mark.parametrize("policy", product.GUARANTEEING)
def test_what_is_borrowed_is_given_back_to_its_owner(policy):
    jobs = [job("e1", 4, 0, 1000, 5, **EAST), job("e2", 4, 0, 1000, 5, **EAST), job("w1", 4, 100, 50, 5, **WEST)]
    regions = Cluster(1, 4, ("east", "west"))
    assert played(jobs, regions, policy) == [(1000, 1000, 0), (1055, 1005, 1), (150, 50, 0)]
    for other in ("fifo", "shortest"):
        assert played(jobs, regions, other)[2] == (1050, 50, 0)


def test_two_institutions_of_one_home_are_guaranteed_a_half_of_it_each():
    near = {"institution": "n", "home_region": "east"}
    jobs = [job("e1", 2, 0, 1000, 5, **EAST), job("e2", 2, 0, 1000, 5, **EAST), job("n1", 2, 100, 50, **near)]
    assert played(jobs, Cluster(1, 4, ("east",)), "suanli")[2] == (150, 50, 0)


# After one of each name, runtimes of jobs called "quick" are expected to be shorter; the last "slow" job is really the shortest.
def test_learned_runtimes_are_those_of_the_jobs_that_have_ended():
    jobs = [
        job("q", 4, 0, 100, name="quick"),
        job("s", 4, 0, 5000, name="slow"),
        job("running", 4, 6000, 200, name="quick"),
        job("said to be slow", 4, 6001, 10, name="slow"),
        job("said to be quick", 4, 6002, 100, name="quick"),
    ]
    known, learned = (played(jobs, Cluster(1, 4), "shortest", learned=each) for each in (False, True))
    assert [end for end, _, _ in known[3:]] == [6210, 6310]
    assert [end for end, _, _ in learned[3:]] == [6310, 6300]
    assert learned == played(jobs, Cluster(1, 4), "shortest", learned=True)


@pytest.mark.parametrize("runtimes", ["--known-runtimes", "--learned-runtimes"])
@pytest.mark.parametrize("policy", queue.PRESETS)
def test_each_policy_by_the_command(tmp_path, capsys, policy, runtimes):
    header = "job_id,num_gpu,submit_s,service_s,institution,home_region"
    path = write(tmp_path, "0,4,0,10,a,east", "0,4,0,30,b,west", header=header)
    arguments = ["--jobs", str(path), "--nodes", "1", "--gpus-per-node", "4", "--policy", policy, runtimes]
    assert queue.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["avg_jct_s"], figures["makespan_s"], figures["utilisation"]) == (20, 30, 0.6667)
    assert {name: each["avg_jct_s"] for name, each in figures["institutions"].items()} == {"a": 10, "b": 30}
    assert set(figures["institutions"]["b"]) == set(figures) - {"institutions"}


# --- figures and files ------------------------------------------------------------------------------------------------


def test_figures():
    outcomes = [Outcome(job(n, 2, 0, 0), end_s=n + 1.0, held_s=1.0, preemptions=n % 2) for n in range(200)]
    figures = metrics(outcomes, 4)
    assert figures == {
        "avg_jct_s": 100.5,
        "median_jct_s": 100.5,
        "p99_jct_s": 199.0,
        "avg_queue_s": 99.5,
        "p99_queue_s": 198.0,
        "makespan_s": 200.0,
        "utilisation": 0.5,
        "preemptions": 100,
    }


def test_last_line_is_json_with_each_institution(tmp_path, capsys):
    header = "job_id,num_gpu,submit_s,service_s,institution,home_region"
    path = write(tmp_path, "0,4,0,10,a,east", "0,4,0,30,b,west", header=header)
    assert queue.main(["--jobs", str(path), "--nodes", "1", "--gpus-per-node", "4", "--policy", "srsf"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["avg_jct_s"] == 20
    assert figures["institutions"]["a"]["avg_jct_s"] == 10
    assert figures["institutions"]["b"]["avg_jct_s"] == 30
    assert set(figures["institutions"]["a"]) == set(figures) - {"institutions"}


def test_compressed_file(tmp_path):
    path = tmp_path / "jobs.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write(f"{HEADER}\n7,8,1.5,20,19,3,bert,0\n")
    assert read_jobs(path) == [Job("7", 8, 1.5, 20.0, 3.0, "bert")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("0,0,0,10,0,0,m,0", "line 2: num_gpu must be a number of at least 1, not '0'"),
        ("0,1.5,0,10,0,0,m,0", "line 2: num_gpu must be whole, not '1.5'"),
        ("0,1,-1,10,0,0,m,0", "line 2: submit_s must be a number of at least 0, not '-1'"),
        ("0,1,0,nan,0,0,m,0", "line 2: service_s must be a number of at least 0, not 'nan'"),
        ("0,1,0,inf,0,0,m,0", "line 2: service_s must be a number of at least 0, not 'inf'"),
        ("0,1,0,10,0,x,m,0", "line 2: resched_overhead_s must be a number of at least 0, not 'x'"),
        (",1,0,10,0,0,m,0", "line 2: job_id is empty"),
        ("0,1,0", "line 2: not as many values as the header has columns"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, why):
    with pytest.raises(BadInput) as caught:
        read_jobs(write(tmp_path, row))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "arguments", "why"),
    [
        (["0,1,0,10,0,0,m,0", "0,1,0,10,0,0,m,0"], [], "job_id 0 is not the first of this id"),
        ([], [], "no jobs"),
        (["0,72,0,10,0,0,m,0"], [], "job 0 can never start: it asks for 72 GPUs together, a region has 8 nodes of 8"),
        (["0,1,0,10,0,0,m,0"], ["--nodes", "0"], "--nodes must be at least 1"),
        (["0,1,0,10,0,0,m,0"], ["--nodes", "x"], "argument --nodes: invalid int value: 'x'"),
        (["0,1,0,10,0,0,m,0"], ["--policy", "lottery"], "argument --policy: invalid choice: 'lottery'"),
        (["0,1,0,10,0,0,m,0"], ["--learned-runtimes"], "--policy srsf is defined for known runtimes only"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, rows, arguments, why):
    path = write(tmp_path, *rows)
    assert queue.main(["--jobs", str(path), "--policy", "srsf", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert why in said.err


def test_columns_and_files_that_are_not_there(tmp_path):
    with pytest.raises(BadInput, match="no column service_s"):
        read_jobs(write(tmp_path, "0,1,0", header="job_id,num_gpu,submit_s"))
    with pytest.raises(BadInput, match="institution and home_region go together"):
        read_jobs(write(tmp_path, "0,1,0,1,a", header="job_id,num_gpu,submit_s,service_s,institution"))
    with pytest.raises(BadInput, match="No such file"):
        read_jobs(tmp_path / "none.csv")
    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(b"not gzip")
    with pytest.raises(BadInput, match="cannot be read"):
        read_jobs(broken)


@pytest.mark.parametrize(
    ("rows", "arguments", "why"),
    [
        (
            ["0,1,0,10,0,0,m,0", "1,1,0,soon,0,0,m,0"],
            [],
            "line 3: service_s must be a number of at least 0, not 'soon'",
        ),
        (["0,72,0,10,0,0,m,0"], [], "job 0 can never start: it asks for 72 GPUs together, a region has 8 nodes of 8"),
        (["0,1,0,10,0,0,m,0"], ["--gpus-per-node", "0"], "--gpus-per-node must be at least 1"),
        (
            ["0,1,0,10,0,0,m,0"],
            ["--known-runtimes", "--learned-runtimes"],
            "not allowed with argument --known-runtimes",
        ),
    ],
)
def test_the_whole_command_on_bad_input(tmp_path, rows, arguments, why):
    path = write(tmp_path, *rows)
    command = [sys.executable, "-m", "benchmarks.replay", "queue", "--jobs", str(path), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert why in done.stderr
