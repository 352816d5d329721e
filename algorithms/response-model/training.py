"""The training loop: deterministic by seed, stoppable at every step, resumable exactly.

All randomness of a step comes from a generator seeded by (seed, epoch, step, rank), so a checkpoint needs no random
state, and a run that was stopped and resumed gives the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import checkpoint
import torch
import torch.distributed as dist
from answers import Answers, shard
from job_io import InputError
from network import ResponseModel, foretell, hidden_mask
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

# Parameters a resumed run may change: they steer how far and where it runs, not what a step does.
FREE_PARAMETERS = frozenset({"checkpoint_every", "device", "file"})


@dataclass(frozen=True)
class Place:
    """Where this replica runs, and the group that averages gradients (None: the default group)."""

    rank: int
    world_size: int
    device: torch.device
    gradients: dist.ProcessGroup | None = None

    @property
    def distributed(self) -> bool:
        """Whether there are other replicas to talk to."""
        return self.world_size > 1


@dataclass(frozen=True)
class Outcome:
    """How training ended: the network, (epoch, training loss, held-out loss) rows, and whether it was stopped early."""

    model: ResponseModel
    history: list[tuple[int, float, float]]
    stopped: bool
    resumed_from: dict[str, int] | None


class StopSignal:
    """Becomes true on SIGTERM; all replicas agree on it before a step, so that they stop at the same one."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)

    def agreed(self, place: Place) -> bool:
        """Whether any replica was asked to stop. Every replica must call this at the same step."""
        if not place.distributed:
            return self._asked.is_set()
        asked = torch.tensor([float(self._asked.is_set())])
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._asked.set()


def fingerprint(settings: Mapping[str, Any], data: Answers, world_size: int, version: str) -> str:
    """What a checkpoint must agree with to be resumed."""
    kept = {name: value for name, value in settings.items() if name not in FREE_PARAMETERS}
    text = json.dumps([kept, data.digest(), world_size, version], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def train(
    settings: Mapping[str, Any], learn: Answers, test: Answers, place: Place, folder: Path, identity: str,
    say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    """Train until the last epoch or SIGTERM; rank 0 writes and reads checkpoints in `folder`."""
    stop = StopSignal()
    right, given = _tensors(shard(learn, place.rank, place.world_size), place.device)
    torch.manual_seed(settings["seed"])
    model = ResponseModel(_log_odds(learn), settings["hidden_units"]).to(place.device)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"]
    )
    epoch, step, loss_sum, history = 0, 0, 0.0, []
    state = _resume(folder, identity, place)
    resumed_from = None
    if state is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        epoch, step, loss_sum = state["epoch"], state["step"], state["loss_sums"][place.rank]
        history = [tuple(row) for row in state["history"]]
        resumed_from = {"epoch": epoch, "step": step}
        say(f"resumed from epoch {epoch}, step {step}")
    wrapped: nn.Module = DistributedDataParallel(model, process_group=place.gradients) if place.distributed else model
    batch = settings["batch_size"]
    steps = -(-len(right) // batch)

    def keep() -> None:
        sums = _gather(loss_sum, place)
        if place.rank == 0:
            checkpoint.save(
                folder,
                {"fingerprint": identity, "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                 "epoch": epoch, "step": step, "loss_sums": sums, "history": [list(row) for row in history]},
            )  # fmt: skip
        if place.distributed:
            dist.barrier()

    while epoch < settings["epochs"]:
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(settings, epoch)
        order = torch.randperm(len(right), generator=_generator(settings["seed"], epoch, -1, place.rank))
        while step < steps:
            if stop.agreed(place):
                keep()
                say(f"stopped by SIGTERM in epoch {epoch}, step {step}; the checkpoint is written")
                return Outcome(model, history, stopped=True, resumed_from=resumed_from)
            rows = order[step * batch : (step + 1) * batch].to(place.device)
            generator = _generator(settings["seed"], epoch, step, place.rank)
            loss_sum += _step(wrapped, optimiser, right[rows], given[rows], settings["hidden_share"], generator)
            step += 1
        train_loss = math.fsum(_gather(loss_sum, place)) / (steps * place.world_size)
        history.append((epoch + 1, train_loss, held_out_loss(model, test, place)))
        epoch, step, loss_sum = epoch + 1, 0, 0.0
        if epoch % settings["checkpoint_every"] == 0 or epoch == settings["epochs"]:
            say(f"epoch {epoch}: loss {history[-1][1]:.4f}, held-out loss {history[-1][2]:.4f}")
            keep()
    return Outcome(model, history, stopped=False, resumed_from=resumed_from)


def held_out_loss(model: ResponseModel, test: Answers, place: Place) -> float:
    """Mean log loss over the held-out answers, each foretold from the person's others; every rank does its part."""
    rows = range(place.rank, len(test.right), place.world_size)
    right, given = (
        torch.from_numpy(each[rows.start :: rows.step]).to(place.device) for each in (test.right, test.given)
    )
    losses = binary_cross_entropy_with_logits(foretell(model, right, given), right, weight=given, reduction="sum")
    total = torch.tensor([float(losses), float(given.sum())], dtype=torch.float64)
    if place.distributed:
        dist.all_reduce(total)
    return float(total[0] / total[1])


def _resume(folder: Path, identity: str, place: Place) -> dict[str, Any] | None:
    """Rank 0's checkpoint, given to all ranks: they may stand on machines that share no folder."""
    found: list[Any] = [None, None]
    if place.rank == 0:
        try:
            found[0] = checkpoint.load(folder, identity)
        except InputError as error:
            found[1] = str(error)
    if place.distributed:
        dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise InputError(found[1])
    state: dict[str, Any] | None = found[0]
    return state


def _step(
    model: nn.Module, optimiser: torch.optim.Optimizer, right: Tensor, given: Tensor, share: float,
    generator: torch.Generator,
) -> float:  # fmt: skip
    hidden = hidden_mask(given.cpu(), share, generator).to(given.device)
    optimiser.zero_grad(set_to_none=True)
    logits = model(right, given - hidden)
    loss = binary_cross_entropy_with_logits(logits, right, weight=hidden, reduction="sum") / hidden.sum()
    torch.autograd.backward(loss)
    optimiser.step()
    return float(loss.detach())


def _generator(seed: int, epoch: int, step: int, rank: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{epoch}/{step}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _learning_rate(settings: Mapping[str, Any], epoch: int) -> float:
    along = epoch / max(settings["epochs"] - 1, 1)
    return float(settings["learning_rate"] * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * along))))


def _log_odds(answers: Answers) -> Tensor:
    """Each item's log-odds of a right answer, half an answer added to both sides."""
    right, given = answers.right.sum(axis=0), answers.given.sum(axis=0)
    return torch.log(torch.from_numpy((right + 0.5) / (given - right + 0.5)))


def _tensors(answers: Answers, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(answers.right).to(device), torch.from_numpy(answers.given).to(device)


def _gather(value: float, place: Place) -> list[float]:
    """Every rank's value, in order of rank."""
    if not place.distributed:
        return [value]
    mine = torch.tensor([value], dtype=torch.float64)
    everyone = [torch.zeros_like(mine) for _ in range(place.world_size)]
    dist.all_gather(everyone, mine)
    return [float(each.item()) for each in everyone]
