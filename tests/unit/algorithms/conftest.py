"""Run a catalogue algorithm as a job does, or load its modules alone."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ALGORITHMS = Path(__file__).resolve().parents[3] / "algorithms"


@dataclass(frozen=True)
class Run:
    """What a run of an algorithm left behind."""

    returncode: int
    stdout: str
    stderr: str
    results: Path

    @property
    def result(self) -> Any:
        return json.loads((self.results / "results.json").read_text(encoding="utf-8"))


class Program:
    """One algorithm: its modules in this process, and runs of its program."""

    def __init__(self, name: str, folder: Path, modules: Mapping[str, ModuleType]) -> None:
        self.name = name
        self.source = ALGORITHMS / name
        self._folder = folder
        self._modules = modules

    def __getattr__(self, name: str) -> ModuleType:
        return self._modules[name]

    def files(self, name: str, parameters: object) -> tuple[Path, Path]:
        """A parameter file and a results folder for the run called `name`."""
        path = self._folder / f"{name}.json"
        path.write_text(parameters if isinstance(parameters, str) else json.dumps(parameters), encoding="utf-8")
        return path, self._folder / name

    def main(self, monkeypatch: pytest.MonkeyPatch, capsys: Any, parameters: object, data: Path | None = None) -> Run:
        """Run the program in this process, which is quick; its exit code and what it printed."""
        path, results = self.files("inside", parameters)
        argv = ["main.py", "--parameters", str(path), "--results", str(results)]
        monkeypatch.setattr(sys, "argv", argv + (["--data", str(data)] if data else []))
        returncode = self.main_module.run(self.main_module.main)
        captured = capsys.readouterr()
        return Run(returncode, captured.out, captured.err, results)

    def start(
        self, name: str, parameters: object, extra: Mapping[str, str] | None = None
    ) -> tuple[subprocess.Popen[str], Path]:
        """Start the program as a job does: a private copy of the folder, and only the contract's variables."""
        copy = self._folder / f"copy-{name}"
        shutil.copytree(self.source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path, results = self.files(name, parameters)
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self._folder), "OMP_NUM_THREADS": "1",
            "SUANLI_PARAMETERS": str(path), "SUANLI_RESULTS": str(results),
            "SUANLI_CHECKPOINT": str(self._folder / f"checkpoint-{name}"), "SUANLI_JOB_ID": "job-1",
            "SUANLI_INSTITUTION": "north", "SUANLI_REGION": "east",
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "main.py"], cwd=copy, env=env | dict(extra or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return process, results

    def job(self, name: str, parameters: object, extra: Mapping[str, str] | None = None) -> Run:
        """Run the program as a job does, to its end."""
        process, results = self.start(name, parameters, extra)
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
        return Run(process.returncode, out, err, results)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str, Sequence[str]], Program]]:
    """`load("irt", ["model"])`: the algorithm with some of its modules; `main_module` is always there.

    Different algorithms have modules of one name, so they are taken out of `sys.modules` again.
    """
    loaded: list[str] = []
    path = list(sys.path)

    def open_program(name: str, modules: Sequence[str] = ()) -> Program:
        folder = ALGORITHMS / name
        sys.path.insert(0, str(folder))
        known = set(sys.modules)
        found = {module: importlib.import_module(module) for module in modules}
        found["main_module"] = importlib.import_module("main")
        loaded.extend(
            each
            for each in set(sys.modules) - known
            if (file := getattr(sys.modules[each], "__file__", None)) and Path(file).is_relative_to(folder)
        )
        return Program(name, tmp_path, found)

    yield open_program
    sys.path[:] = path
    for each in loaded:
        del sys.modules[each]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
