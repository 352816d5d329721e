"""A real Prometheus server for tests, on a free port of the loopback, and what to ask it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from tools.prometheus import prometheus_path

DEADLINE_S = 30.0
Labels = frozenset[tuple[str, str]]


class Sample(NamedTuple):
    """A value and when it was true, in seconds."""

    at: float
    value: float


class Prometheus:
    """A running server."""

    def __init__(self, folder: Path, config: dict[str, Any], data: Path | None = None) -> None:
        self._log = folder / "prometheus.log"
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        command = [str(prometheus_path()), f"--config.file={file}", "--web.listen-address=127.0.0.1:0"]
        command += [f"--storage.tsdb.path={data or folder / 'data'}", "--storage.tsdb.retention.time=10y"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.address = ""

    def wait_ready(self) -> None:
        """Wait until it answers. Not every version says in its log which port it was given, so the system is asked."""
        self.until(self._find_address)
        self.until(lambda: self._get("/-/ready") is not None)

    def _find_address(self) -> bool:
        sockets = psutil.Process(self._process.pid).net_connections("tcp4")
        self.address = next((f"127.0.0.1:{s.laddr.port}" for s in sockets if s.status == psutil.CONN_LISTEN), "")
        return bool(self.address)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something true, and give it."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            lost = self._process.poll() is not None or time.monotonic() > deadline
            assert not lost, self._log.read_text()[-4000:]
            time.sleep(0.02)
        return found

    def query(self, expression: str, at: float | None = None) -> dict[Labels, Sample]:
        """An instant query's samples by their labels; raises AssertionError with Prometheus' words if it fails."""
        answer = self.ask("query", query=expression, **({} if at is None else {"time": f"{at:.3f}"}))
        if answer["resultType"] == "scalar":
            return {frozenset(): Sample(float(answer["result"][0]), float(answer["result"][1]))}
        return {labels_of(each): Sample(each["value"][0], float(each["value"][1])) for each in answer["result"]}

    def samples(self, selector: str, window: str) -> dict[Labels, list[Sample]]:
        """Every stored sample of the last window."""
        answer = self.ask("query", query=f"{selector}[{window}]")
        return {labels_of(e): [Sample(at, float(value)) for at, value in e["values"]] for e in answer["result"]}

    def ask(self, call: str, **arguments: str) -> Any:
        """The data of an answer of the HTTP API."""
        answer = self._get(f"/api/v1/{call}?{urllib.parse.urlencode(arguments)}")
        assert answer is not None, "not ready"
        document = json.loads(answer)
        assert document["status"] == "success", (document["error"], arguments)
        return document["data"]

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=DEADLINE_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            body = error.read()
            return body if path.startswith("/api/") else None
        except urllib.error.URLError:
            return None

    def end(self) -> None:
        """Stop it and wait."""
        self._process.terminate()
        self._process.wait(DEADLINE_S)


def labels_of(result: dict[str, Any]) -> Labels:
    """Labels without the metric's name, to compare by."""
    return frozenset((name, value) for name, value in result["metric"].items() if name != "__name__")


@contextmanager
def prometheus(folder: Path, config: dict[str, Any], data: Path | None = None) -> Iterator[Prometheus]:
    """A server that is ready, and ended afterwards."""
    server = Prometheus(folder, config, data)
    try:
        server.wait_ready()
        yield server
    finally:
        server.end()
