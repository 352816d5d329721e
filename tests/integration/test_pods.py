import pytest
from pathlib import Path
import tempfile, shutil
from tests.integration.pod_tools import *
from tests.integration.executor_tools import shell, python, Run
from workers.executor.types import *

@pytest.fixture
def volume():
    f = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="suanli-test-"))
    yield f
    shutil.rmtree(f, ignore_errors=True)

@pytest.fixture
def cluster(volume, tmp_path, monkeypatch):
    c = FakeKubernetes(tmp_path)
    c.add_worker(volume)
    monkeypatch.setenv("KUBECONFIG", str(c.kubeconfig))
    monkeypatch.setenv("SUANLI_POD_NAME", "worker-0")
    monkeypatch.setenv("SUANLI_POD_NAMESPACE", NAMESPACE)
    yield c
    c.close()

@pytest.fixture
async def run(cluster, volume):
    e = await executor_in(volume)
    yield Run(e)
    await e.close()

async def test_ends(run, cluster):
    ended = await run.run(shell("echo out; echo err >&2; printf partial; echo r > $SUANLI_RESULTS/x; id; exit 3"))
    print(ended, await log(run), await log(run, Stream.STDERR))
    print(cluster.jobs().keys(), cluster.requests)
    assert ended.exit_code == 3
