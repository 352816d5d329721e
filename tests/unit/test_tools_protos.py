"""The stub generator: modules land below ``protos``, messages can be pickled, and drift is seen."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from protos.suanli.v1 import jobs_pb2
from tools import protos

COMMON = 'syntax = "proto3";\npackage suanli.v1;\nmessage Thing {\n  string name = 1;\n}\n'
USER = """syntax = "proto3";
package suanli.v1;
import "suanli/v1/common.proto";
message GetRequest {
  Thing thing = 1;
}
service ThingService {
  rpc Get(GetRequest) returns (Thing);
}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "suanli" / "v1"
    folder.mkdir(parents=True)
    (folder / "common.proto").write_text(COMMON)
    (folder / "things.proto").write_text(USER)
    return tmp_path


def test_stubs_refer_to_each_other_below_protos(root: Path) -> None:
    stubs = protos.generate(root)
    assert {path.name for path in stubs} == {
        *("common_pb2.py", "common_pb2.pyi"),
        *("things_pb2.py", "things_pb2.pyi", "things_pb2_grpc.py", "things_pb2_grpc.pyi"),
    }
    for text in stubs.values():
        assert "from suanli" not in text
        assert "import suanli" not in text
    assert "from protos.suanli.v1 import common_pb2" in stubs[Path("suanli/v1/things_pb2.py")]


def test_messages_can_be_pickled() -> None:
    message = jobs_pb2.GetJobRequest(job_id="job-1")
    assert pickle.loads(pickle.dumps(message)) == message


def test_the_check_sees_stale_missing_and_orphaned_stubs(root: Path) -> None:
    assert protos.write(root, protos.generate(root)) == 6
    assert protos.main(["--check", "--root", str(root)]) == 0
    source = root / "suanli" / "v1" / "common.proto"
    source.write_text(COMMON.replace("string name = 1;", "string name = 1;\n  int64 size = 2;"))
    (root / "suanli" / "v1" / "things_pb2.pyi").unlink()
    (root / "suanli" / "v1" / "gone_pb2.py").write_text("")
    findings = "\n".join(protos.drift(root, protos.generate(root)))
    for name in ("common_pb2.py", "things_pb2.pyi: missing", "gone_pb2.py: no .proto"):
        assert name in findings
    assert protos.main(["--check", "--root", str(root)]) == 1
    assert protos.main(["--root", str(root)]) == 0
    assert protos.main(["--check", "--root", str(root)]) == 0


def test_a_faulty_source_is_an_error_and_changes_nothing(root: Path) -> None:
    protos.write(root, protos.generate(root))
    before = {path: (root / path).read_text() for path in protos.existing(root)}
    (root / "suanli" / "v1" / "common.proto").write_text("message {")
    assert protos.main(["--root", str(root)]) == 1
    assert {path: (root / path).read_text() for path in protos.existing(root)} == before
