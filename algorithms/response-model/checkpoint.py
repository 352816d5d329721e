"""Checkpoints: written whole or not at all, and refused when they belong to another run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from job_io import InputError

FILE = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` beside the old checkpoint, flush it to disk, and put it in the old one's place."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.{os.getpid()}.part"
    with temporary.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(folder / FILE)


def load(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The last checkpoint, or None; `InputError` when it was made with other data, parameters or replicas."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"The checkpoint {path} cannot be read; remove it to start anew.") from error
    if state.get("fingerprint") != fingerprint:
        raise InputError(
            f"The checkpoint {path} was made with other data, parameters or replicas; remove it to start anew."
        )
    return state
