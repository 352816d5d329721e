"""The training gang: exact resume, agreement between replicas, measures, and bad inputs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
QUICK = {"epochs": 8, "checkpoint_every": 2, "hidden_units": 8}


@pytest.fixture
def model(load: Any) -> Any:
    return load("response-model", ["answers", "network", "checkpoint", "training", "job_io"])


def shipped(model: Any) -> Any:
    table = model.job_io.read_table(model.source / "data" / "lsat.csv")
    return model.answers.answers_from(table, "", "frequency")


def ranks(port: int, name: str, folder: Path) -> list[dict[str, str]]:
    """The variables of the two replicas of a gang, as torchrun sets them."""
    shared = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "SUANLI_CHECKPOINT": str(folder / name), "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def gang(model: Any, name: str, parameters: object, variables: list[dict[str, str]]) -> tuple[list[int], Any, str]:
    """Run a gang to its end: exit codes, rank 0's results folder and what rank 0 printed."""
    started = [model.start(f"{name}-{at}", parameters, each) for at, each in enumerate(variables)]
    try:
        printed = [process.communicate(timeout=120) for process, _ in started]
    finally:
        for process, _ in started:
            process.kill()
    codes = [process.returncode for process, _ in started]
    return codes, started[0][1], printed[0][0] + "".join(err for _, err in printed)


def test_stopped_and_resumed_is_the_same_as_never_stopped(model: Any, tmp_path: Path, free_port: int) -> None:
    codes, whole, printed = gang(model, "whole", QUICK, ranks(free_port, "c1", tmp_path))
    assert codes == [0, 0], printed
    variables = ranks(free_port, "c2", tmp_path)
    started = [model.start(f"cut-{at}", QUICK, each)[0] for at, each in enumerate(variables)]
    try:
        assert any(line.startswith("epoch 4") for line in started[0].stdout)
        started[1].send_signal(signal.SIGTERM)  # One replica is told; all must stop at the same step.
        out = started[0].communicate(timeout=60)[0]
        started[1].communicate(timeout=60)
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [143, 143], out
    assert "checkpoint is written" in out
    codes, resumed, printed = gang(model, "resumed", QUICK, variables)
    assert codes == [0, 0], printed
    before, after = (json.loads((each / "results.json").read_text(encoding="utf-8")) for each in (whole, resumed))
    assert before["resumed_from"] is None
    assert after["resumed_from"]["epoch"] >= 4
    for file in ("history.csv", "items.csv"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    assert after["final_training_loss"] == before["final_training_loss"]
    assert after["held_out"] == before["held_out"]
    assert before["world_size"] == 2


@pytest.mark.parametrize("steps", [0, 1, 16, 21, 47])
def test_stopped_at_any_step_it_resumes_exactly(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, steps: int
) -> None:
    monkeypatch.setenv("SUANLI_CHECKPOINT", str(tmp_path / "whole"))
    settings = {"epochs": 3, "checkpoint_every": 2, "hidden_units": 8}  # 3 epochs of 16 steps.
    before = model.main(monkeypatch, capsys, settings)
    whole = before.result, (before.results / "history.csv").read_bytes()
    monkeypatch.setenv("SUANLI_CHECKPOINT", str(tmp_path / "cut"))
    with monkeypatch.context() as patch:
        asked = iter([False] * steps + [True])
        patch.setattr(model.training.StopSignal, "agreed", lambda _self, _place: next(asked))
        stopped = model.main(monkeypatch, capsys, settings)
    assert stopped.returncode == 143
    after = model.main(monkeypatch, capsys, settings)
    assert after.result["resumed_from"] == {"epoch": steps // 16, "step": steps % 16}
    assert after.result["held_out"] == whole[0]["held_out"]
    assert (after.results / "history.csv").read_bytes() == whole[1]


def test_every_epoch_hides_other_answers(model: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = model.main(monkeypatch, capsys, {"epochs": 2, "learning_rate": 1e-6})
    first, second = (float(row.split(",")[1]) for row in (run.results / "history.csv").read_text().splitlines()[1:])
    assert abs(first - second) > 1e-4


def test_default_training_beats_the_item_means_and_repeats_exactly(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = model.job("once", {})
    assert run.returncode == 0, run.stderr
    first, held_out = run.result, run.result["held_out"]
    manifest = model.job_io.load_job(["--results", str(run.results / "unused")]).manifest
    for output in manifest["outputs"]:
        assert (run.results / output["file"]).stat().st_size > 0
    assert held_out["model"]["log_loss"] < held_out["baseline"]["log_loss"] - 0.015
    assert held_out["model"]["auc"] > held_out["baseline"]["auc"] + 0.03
    assert first["final_held_out_loss"] == pytest.approx(held_out["model"]["log_loss"], abs=1e-5)
    assert first["data"]["training_persons"] + first["data"]["held_out_persons"] == 2000
    again = model.main(monkeypatch, capsys, {})
    assert again.result["held_out"] == held_out
    other = model.main(monkeypatch, capsys, {"seed": 2, "epochs": 1, "checkpoint_every": 1, "device": "cpu"})
    assert other.returncode == 2  # The checkpoint in that results folder belongs to the run before.
    assert "made with other data, parameters or replicas" in other.stderr


def test_a_finished_run_that_is_started_again_reports_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    first = model.main(monkeypatch, capsys, QUICK).result
    again = model.main(monkeypatch, capsys, QUICK).result
    assert again["resumed_from"] == {"epoch": 8, "step": 0}
    assert again["held_out"] == first["held_out"]


def test_a_checkpoint_is_replaced_whole_or_not_at_all(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.checkpoint.save(tmp_path, {"fingerprint": "f", "epoch": 1})

    def die_half_way(_state: object, stream: Any) -> None:
        stream.write(b"half a checkpoint")
        raise OSError("no space left")

    monkeypatch.setattr(model.checkpoint.torch, "save", die_half_way)
    with pytest.raises(OSError, match="no space"):
        model.checkpoint.save(tmp_path, {"fingerprint": "f", "epoch": 2})
    assert model.checkpoint.load(tmp_path, "f")["epoch"] == 1


def test_a_damaged_checkpoint_is_named_in_one_sentence(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    monkeypatch.setenv("SUANLI_CHECKPOINT", str(tmp_path))
    run = model.main(monkeypatch, capsys, QUICK)
    assert run.returncode == 2
    assert "cannot be read; remove it" in run.stderr


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shards_hold_every_person_once_but_for_padding(model: Any, world_size: int) -> None:
    table = model.job_io.Table("t", ("a", "b"), [[str(k % 2), str((k // 2) % 2)] for k in range(10)])
    whole = model.answers.answers_from(table, "", "")
    numbered = model.answers.Answers(["a"], np.arange(10, dtype=np.float32)[:, None], whole.given[:, :1])
    shards = [model.answers.shard(numbered, rank, world_size).right[:, 0] for rank in range(world_size)]
    assert len({len(shard) for shard in shards}) == 1
    dealt = np.concatenate(shards)
    assert set(dealt) == set(range(10))
    assert len(dealt) - 10 < world_size


def test_no_person_is_both_trained_on_and_held_out(model: Any) -> None:
    table = model.job_io.Table("t", ("a", "b"), [[str(k % 2), str((k // 2) % 2)] for k in range(100)])
    whole = model.answers.answers_from(table, "", "")
    numbered = model.answers.Answers(["a"], np.arange(100, dtype=np.float32)[:, None], whole.given[:, :1])
    learn, test = model.answers.split(numbered, 0.2, 1)
    assert len(test.right) == 20
    assert set(learn.right[:, 0]) | set(test.right[:, 0]) == set(range(100))
    assert not set(learn.right[:, 0]) & set(test.right[:, 0])


def test_an_answer_is_foretold_without_being_seen(model: Any) -> None:
    torch = model.network.torch
    torch.manual_seed(0)
    network = model.network.ResponseModel(torch.zeros(4), 8)
    torch.nn.init.normal_(network.layers[-1].weight)
    right = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    turned = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    given = torch.ones(1, 4)
    before, after = (model.network.foretell(network, each, given)[0] for each in (right, turned))
    assert before[2] == after[2]
    assert all(before[k] != after[k] for k in (0, 1, 3))


def test_masks_hide_given_answers_only_and_at_least_one(model: Any) -> None:
    torch = model.network.torch
    given = torch.tensor([[1.0, 1, 0, 0, 1], [1.0, 1, 1, 1, 1], [0.0, 1, 0, 0, 1]]).repeat(200, 1)
    hidden = model.network.hidden_mask(given, 0.4, torch.Generator().manual_seed(1))
    assert bool(((hidden == 0) | (given == 1)).all())
    assert bool((hidden.sum(dim=1) >= 1).all())
    assert float(hidden.sum() / given.sum()) == pytest.approx(0.45, abs=0.1)


def test_area_under_curve_counts_pairs(model: Any) -> None:
    draw = np.random.default_rng(2)
    score, right = np.round(draw.normal(size=300), 1), (draw.random(300) < 0.6).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[right == 1] for b in score[right == 0]]
    assert model.network.area_under_curve(score, right) == pytest.approx(np.mean(pairs))
    assert model.network.area_under_curve(score, np.ones(300)) is None


def test_shipped_answers_are_the_published_ones(model: Any) -> None:
    answers = shipped(model)
    assert answers.right.shape == (2000, 10)
    assert answers.right.sum(axis=0).tolist() == [924, 709, 553, 763, 870, 828, 658, 772, 606, 843]
    assert answers.given.sum(axis=0).tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("a,b\n1,0\n2,1\n", "answers are 0 or 1"),
        ("a,b\n1,1\n1,0\n", "item 'a' is right"),
        ("a\n1\n0\n", "1 items"),
        ("a,b\n1,\n,0\n", "item 'a' is missing"),
        ("a,b,frequency\n1,0,1e8\n0,1,1e8\n", "200000000"),
        ("a,b\n1,0\n0,1\n", "too few"),
        ("", "is empty"),
    ],
)
def test_a_table_that_cannot_be_used_ends_with_one_sentence(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, table: str, sentence: str
) -> None:
    path = tmp_path / "granted" / "mine" / "data.csv"
    path.parent.mkdir(parents=True)
    path.write_text(table, encoding="utf-8")
    run = model.main(monkeypatch, capsys, {"dataset": "mine"}, tmp_path / "granted")
    assert run.returncode == 2
    assert sentence in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 but WORLD_SIZE is 2"),
        ({"RANK": "one"}, "not a whole number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
    ],
)
def test_a_gang_set_up_wrongly_ends_with_one_sentence(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, variables: dict[str, str], sentence: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run = model.main(monkeypatch, capsys, QUICK)
    assert run.returncode == 2
    assert sentence in run.stderr
