"""Train a response model, alone or as a gang: the program a job runs. See `manifest.yaml`."""

from __future__ import annotations

import datetime
import os
import sys
from dataclasses import replace
from typing import Any

import figure
import numpy as np
import torch
import torch.distributed as dist
from answers import Answers, answers_from, split
from job_io import InputError, Job, find_table, read_table, run, write_csv, write_json
from network import area_under_curve, foretell
from numpy.typing import NDArray
from torch.nn.functional import binary_cross_entropy_with_logits
from training import Outcome, Place, fingerprint, train

EXIT_STOPPED = 143
GANG_TIMEOUT = datetime.timedelta(seconds=120)


def main(job: Job) -> int:
    """Read, train, write; 143 when SIGTERM stopped it after a checkpoint."""
    settings = job.parameters
    torch.set_num_threads(_threads())
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Without it cuBLAS is not deterministic.
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    table = read_table(find_table(job, settings["dataset"], settings["file"]))
    answers = answers_from(table, settings["id_column"], settings["frequency_column"])
    learn, test = split(answers, settings["held_out_share"], settings["seed"])
    place = _place(job)
    if place.distributed:
        place = _join(place)
    try:
        identity = fingerprint(settings, answers, job.world_size, job.manifest["version"])
        outcome = train(settings, learn, test, place, job.checkpoint, identity, lambda text: _say(job, text))
    finally:
        if place.distributed:
            dist.destroy_process_group()
    if outcome.stopped:
        return EXIT_STOPPED
    if job.is_main:
        _report(job, learn, test, outcome, place)
    return 0


def _place(job: Job) -> Place:
    wanted = job.parameters["device"]
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "gpu" and not gpus:
        raise InputError("The parameter 'device' is gpu, but this job was given none.")
    if job.world_size > 1 and not os.environ.get("MASTER_ADDR"):
        raise InputError("WORLD_SIZE is above 1 but MASTER_ADDR is not set, so the replicas cannot find each other.")
    if not gpus:
        return Place(job.rank, job.world_size, torch.device("cpu"))
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % gpus)
    torch.cuda.set_device(device)
    return Place(job.rank, job.world_size, device)


def _join(place: Place) -> Place:
    """Meet the other replicas: gloo for control, and NCCL for gradients where every replica has a GPU of its own."""
    dist.init_process_group("gloo", timeout=GANG_TIMEOUT)
    gpu = str(torch.cuda.get_device_properties(place.device).uuid) if place.device.type == "cuda" else ""
    gpus = [""] * place.world_size
    dist.all_gather_object(gpus, gpu)
    if "" in gpus or len(set(gpus)) < len(gpus):
        return place  # NCCL refuses two replicas on one GPU; gloo carries their gradients too.
    return replace(place, gradients=dist.new_group(backend="nccl", timeout=GANG_TIMEOUT))


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "")
    return max(int(text), 1) if text.isdigit() else 1


def _say(job: Job, text: str) -> None:
    if job.is_main:
        print(text, flush=True)


def _report(job: Job, learn: Answers, test: Answers, outcome: Outcome, place: Place) -> None:
    model = outcome.model.to("cpu").eval()
    logits = foretell(model, torch.from_numpy(test.right), torch.from_numpy(test.given)).numpy().astype(np.float64)
    share = (learn.right.sum(axis=0) + 0.5) / (learn.given.sum(axis=0) + 1.0)
    base = np.broadcast_to(np.log(share / (1 - share)), logits.shape).astype(np.float64)
    given = test.given == 1
    right = test.right[given].astype(np.float64)
    measured = {"model": _measures(logits[given], right), "baseline": _measures(base[given], right)}
    gain = 1 - measured["model"]["log_loss"] / measured["baseline"]["log_loss"]
    summary = (
        f"{len(learn.right)} persons, {place.world_size} replicas, {len(outcome.history)} epochs: held-out loss "
        f"{measured['model']['log_loss']:.4f} against {measured['baseline']['log_loss']:.4f} for the item means, AUC "
        f"{_shown(measured['model']['auc'])} against {_shown(measured['baseline']['auc'])}."
    )
    result: dict[str, Any] = {
        "algorithm": job.manifest["name"],
        "version": job.manifest["version"],
        "summary": summary,
        "headline": [
            {"label": "Held-out loss", "value": measured["model"]["log_loss"]},
            {"label": "AUC", "value": measured["model"]["auc"]},
            {"label": "Replicas", "value": place.world_size},
        ],
        "parameters": dict(job.parameters),
        "data": {"dataset": job.parameters["dataset"], "items": test.items, "training_persons": len(learn.right),
                 "held_out_persons": len(test.right), "held_out_answers": len(right)},
        "epochs": len(outcome.history),
        "final_training_loss": outcome.history[-1][1],
        "final_held_out_loss": outcome.history[-1][2],
        "held_out": measured,
        "loss_reduction": gain,
        "world_size": place.world_size,
        "device": place.device.type,
        "resumed_from": outcome.resumed_from,
        "warnings": [] if gain > 0 else ["The model foretells no better than the item means."],
    }  # fmt: skip
    write_csv(job.results / "history.csv", ("epoch", "training_loss", "held_out_loss"), outcome.history)
    _write_items(job, test, share, logits, base)
    weights = {"state": model.state_dict(), "items": test.items, "hidden_units": job.parameters["hidden_units"]}
    torch.save(weights, job.results / "model.pt")
    figure.draw(job.results / "plot.png", result, outcome.history, logits[given], base[given], right)
    write_json(job.results / "results.json", result)
    print(summary)


def _measures(logits: NDArray[np.float64], right: NDArray[np.float64]) -> dict[str, Any]:
    loss = float(np.mean(np.logaddexp(0.0, logits) - right * logits))
    return {
        "log_loss": loss,
        "accuracy": float(np.mean((logits > 0) == (right == 1))),
        "auc": area_under_curve(logits, right),
    }


def _write_items(
    job: Job, test: Answers, share: NDArray[Any], logits: NDArray[np.float64], base: NDArray[np.float64]
) -> None:
    def loss(values: NDArray[np.float64]) -> NDArray[Any]:
        each = binary_cross_entropy_with_logits(
            torch.from_numpy(values.copy()), torch.from_numpy(test.right).double(), reduction="none"
        ).numpy()
        return np.asarray((each * test.given).sum(axis=0) / np.maximum(test.given.sum(axis=0), 1))

    columns = ("item", "training_share_right", "baseline_log_loss", "model_log_loss")
    rows = zip(test.items, share.astype(float).tolist(), loss(base).tolist(), loss(logits).tolist(), strict=True)
    write_csv(job.results / "items.csv", columns, rows)


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(run(main))
