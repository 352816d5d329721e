"""The replay of queue traces: the published protocol on traces small enough to work out by hand, the figures, bad input."""

from __future__ import annotations

import gzip
import json

import pytest

from benchmarks.replay import protocol, queue
from benchmarks.replay.trace import BadInput, Cluster, Job, Outcome, metrics, read_jobs

HEADER = "job_id,num_gpu,submit_s,service_s,raw_duration_s,resched_overhead_s,model_name,priority"


def job(job_id, num_gpu, submit_s, service_s, overhead_s=0.0, **tenancy):
    return Job(str(job_id), num_gpu, submit_s, service_s, overhead_s, "", **tenancy)


def ends(jobs, cluster, *, by_service):
    return [outcome.end_s for outcome in protocol.replay(jobs, cluster, by_service)]


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
