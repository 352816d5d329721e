"""The answers a response model learns from: reading, checking, splitting by person and sharding by rank."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from job_io import InputError, Table
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MISSING = {"", "NA", "na", "NaN", "nan", "."}
MAX_ANSWERS = 200_000_000


@dataclass(frozen=True)
class Answers:
    """N persons' answers to J items: `right` and `given`, (N, J) of 0 and 1."""

    items: list[str]
    right: Floats
    given: Floats

    def take(self, rows: NDArray[np.intp]) -> Answers:
        """The persons at `rows`."""
        return Answers(self.items, self.right[rows], self.given[rows])

    def digest(self) -> str:
        """A hash of the items and all answers, by which a checkpoint knows its data."""
        state = hashlib.sha256("\x1f".join(self.items).encode())
        state.update(self.right.tobytes())
        state.update(self.given.tobytes())
        return state.hexdigest()


def answers_from(table: Table, id_column: str, frequency_column: str) -> Answers:
    """Check a table and expand it to one row per person; `InputError` says what cannot be used."""
    items = [column for column in table.columns if column not in {id_column, frequency_column}]
    if len(items) < 2:
        raise InputError(f"{table.name} has {len(items)} items; at least 2 are needed.")
    right = np.zeros((len(table.rows), len(items)), dtype=np.float32)
    given = np.ones_like(right)
    for j, item in enumerate(items):
        for i, cell in enumerate(table.text(item)):
            if cell in MISSING:
                given[i, j] = 0
            elif cell in {"1", "1.0"}:
                right[i, j] = 1
            elif cell not in {"0", "0.0"}:
                raise InputError(f"{table.name}, line {i + 2}: item {item!r} holds {cell[:40]!r}; answers are 0 or 1.")
    repeat = _frequencies(table, frequency_column)
    if int(repeat.sum()) * len(items) > MAX_ANSWERS:
        raise InputError(f"{table.name} stands for more than {MAX_ANSWERS} answers.")
    repeat = np.where(given.sum(axis=1) >= 2, repeat, 0)
    result = Answers(items, np.repeat(right, repeat, axis=0), np.repeat(given, repeat, axis=0))
    for item, n, r in zip(items, result.given.sum(axis=0), result.right.sum(axis=0), strict=True):
        if n == 0 or r in (0, n):
            outcome = "missing" if n == 0 else "right" if r else "wrong"
            raise InputError(f"{table.name}: every answer to item {item!r} is {outcome}; leave it out.")
    return result


def split(answers: Answers, held_out_share: float, seed: int) -> tuple[Answers, Answers]:
    """Training and held-out persons, drawn by the seed."""
    persons = len(answers.right)
    held_out = round(persons * held_out_share)
    if held_out < 1 or persons - held_out < 1:
        raise InputError(f"{persons} persons with two or more answers are too few to train on and to hold out.")
    order = np.random.default_rng(seed).permutation(persons)
    return answers.take(np.sort(order[held_out:])), answers.take(np.sort(order[:held_out]))


def shard(answers: Answers, rank: int, world_size: int) -> Answers:
    """This rank's persons: every world_size-th, padded from the start so that all ranks take as many steps."""
    persons = len(answers.right)
    size = -(-persons // world_size)
    return answers.take((np.arange(size) * world_size + rank) % persons)


def _frequencies(table: Table, column: str) -> NDArray[np.int64]:
    if column not in table.columns:
        return np.ones(len(table.rows), dtype=np.int64)
    values = np.array(table.numbers(column))
    if np.any(values < 0) or np.any(values != np.round(values)) or values.max() > 1e9:
        raise InputError(f"{table.name}: column {column!r} must hold whole numbers from 0 to 1000000000.")
    return values.astype(np.int64)
