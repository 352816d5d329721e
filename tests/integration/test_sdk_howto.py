"""The page docs/howto/python.md is true: its examples run, one after the other, and print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from suanli import errors
from tests.integration.sdk_agent import running_place

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "python.md"


def test_the_examples_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my-analysis"
    folder.mkdir()
    (folder / "analyse.py").write_text(
        "import os, sys\nprint('analysed')\nopen(os.environ['SUANLI_RESULTS'] + '/summary.txt', 'w').write(sys.argv[2])\n"
    )
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    # As a script of the user's: a function of __main__ travels by value.
    names: dict[str, object] = {"__name__": "__main__"}
    with running_place() as place:
        monkeypatch.setenv("SUANLI_ADDRESS", place.address)
        monkeypatch.setenv("SUANLI_API_KEY", place.ada)
        for example in examples:
            exec(compile(example, str(PAGE), "exec"), names)
        names["client"].close()  # type: ignore[attr-defined]
    printed = capsys.readouterr().out
    said = re.findall(r"^ *print\(.*\)  # (.*)$", "\n".join(examples), re.MULTILINE)
    assert len(said) == 5
    for text in ("ada", "SUCCEEDED east", "stdout analysed", "\n4\n", "in mean", *said):
        assert text in printed, text


def test_the_table_has_every_error() -> None:
    table = PAGE.read_text().partition("## Errors")[2]
    named = set(re.findall(r"`([A-Z]\w+)`", table))
    base = {"SuanliError", "Internal"}
    every = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.SuanliError)
    }
    assert named | base == every
