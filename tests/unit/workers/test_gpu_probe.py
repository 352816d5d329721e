"""Reading NVML, with a stand-in for its module: what is taken from it, and that its failures stay its own."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from workers.executor import gpu_probe
from workers.executor.gpu_probe import GpuReading, NoProbe, NvmlProbe

NOW_US = 1_700_000_000_000_000


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class Nvml:
    """One GPU, number 0. ``failing`` maps the name of a function to the error it raises."""

    NVMLError = NVMLError
    NVML_SUCCESS, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NOT_FOUND = 0, 3, 6

    def __init__(self, samples: list[tuple[int, int, int]] = [], **failing: Exception) -> None:  # noqa: B006
        self.samples = samples
        self.failing = failing
        self.since_us: list[int] = []

    def _fail(self, name: str) -> None:
        if name in self.failing:
            raise self.failing[name]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index != 0:
            raise NVMLError(2)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        self._fail("rates")
        return SimpleNamespace(gpu=37, memory=5)

    def nvmlDeviceGetProcessUtilization(self, handle: Any, since_us: int) -> list[Any]:
        self._fail("by_process")
        self.since_us.append(since_us)
        return [SimpleNamespace(pid=pid, smUtil=sm, timeStamp=at) for pid, sm, at in self.samples]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        self._fail("processes")
        entries = [(10, 512 << 20), (11, None), (12, 1 << 20), (12, 2 << 20)]
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in entries]


def probe(nvml: Nvml) -> NvmlProbe:
    return NvmlProbe(nvml, lambda: NOW_US)


def test_the_newest_sample_of_each_process_counts_and_rubbish_does_not() -> None:
    nvml = Nvml(
        [
            (10, 80, NOW_US - 100),
            (10, 20, NOW_US - 900_000),
            (12, 5, NOW_US - 500),
            (0, 50, NOW_US),
            (13, 4_000_000, NOW_US),
            (14, 50, NOW_US - 2_000_000),
        ]
    )
    assert probe(nvml).read(0) == GpuReading(370, {10: 800, 12: 50}, {10: 512, 12: 3})
    assert nvml.since_us == [NOW_US - 1_000_000]


@pytest.mark.parametrize("code", [Nvml.NVML_ERROR_NOT_FOUND, Nvml.NVML_SUCCESS])
def test_no_sample_is_an_idle_gpu_and_no_failure(code: int, caplog: pytest.LogCaptureFixture) -> None:
    reading = probe(Nvml(by_process=NVMLError(code))).read(0)
    assert reading is not None
    assert reading.process_busy_milli == {}
    assert not caplog.records


def test_each_failure_costs_its_own_figure_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    unsupported = NVMLError(Nvml.NVML_ERROR_NOT_SUPPORTED)
    tested = probe(Nvml(rates=unsupported, by_process=unsupported))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tested.read(0) == GpuReading(None, None, {10: 512, 12: 3})
    assert len(caplog.records) == 2
    # An error of another kind, as of a driver that lacks the function, is no worse.
    assert probe(Nvml(processes=AttributeError("no such function"))).read(0) == GpuReading(370, {}, None)


def test_a_number_the_driver_does_not_know_is_a_declared_gpu() -> None:
    assert probe(Nvml()).read(5) is None


@pytest.mark.parametrize("failure", [ImportError("no pynvml"), NVMLError(12)])
def test_without_nvml_there_is_no_probe(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        if isinstance(failure, ImportError):
            raise failure

        def init() -> None:
            raise failure

        return SimpleNamespace(nvmlInit=init)

    monkeypatch.setattr(gpu_probe.importlib, "import_module", load)
    found = gpu_probe.open_probe()
    assert isinstance(found, NoProbe)
    assert found.read(0) is None
