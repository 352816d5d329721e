"""The generated pages are those of the sources, and what the written pages point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
import yaml

from protos.suanli.v1 import admin_pb2, jobs_pb2, regions_pb2, usage_pb2
from scheduler.config import config_from
from suanli.cli.main import cli
from tools import chart, reference
from workers.config import parse_config

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
WRITTEN = [*sorted(DOCS.rglob("*.md")), REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"]
OPERATORS = ["add-a-region", "gpu", "identity", "install-on-kubernetes", "operate"]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages()


def test_the_pages_are_up_to_date(pages: dict[str, str]) -> None:
    stale = [name for name, text in pages.items() if (reference.PAGES / name).read_text() != text]
    assert not stale, "run: python -m tools.reference"


def test_the_check_names_a_stale_page_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path)]
    assert reference.main(folder) == 0
    assert reference.main(["--check", *folder]) == 0
    with (tmp_path / "errors.md").open("a") as page:
        page.write("more\n")
    assert reference.main(["--check", *folder]) == 1
    assert "errors.md" in capsys.readouterr().err
    assert reference.main(folder) == 0
    assert reference.main(["--check", *folder]) == 0


def test_every_call_has_a_row_of_permissions_and_every_message_a_section(pages: dict[str, str]) -> None:
    for module in (jobs_pb2, admin_pb2, usage_pb2, regions_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"\n| `{method.name}` |" in pages["permissions.md"], method.full_name
        for message in module.DESCRIPTOR.message_types_by_name.values():
            assert f"\n### {message.name}\n" in pages["protocol.md"]
            for field in message.fields:
                assert f"| {field.number} | `{field.name}`" in pages["protocol.md"], field.full_name


def test_comments_of_the_contract_are_on_the_page(pages: dict[str, str]) -> None:
    assert "| 1 | `argv` | repeated string | 1 to 1,024 strings" in pages["protocol.md"]
    assert "map of string to string" in pages["protocol.md"]


def test_no_cell_of_a_table_is_left_out(pages: dict[str, str]) -> None:
    for name in ("configuration.md", "metrics.md", "permissions.md", "errors.md"):
        for line in pages[name].splitlines():
            if line.startswith("|"):
                assert all(part.strip() for part in line.strip("|").split(" | ")), f"{name}: {line}"


def test_a_reason_given_anywhere_in_the_server_is_found(tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        'raise NotFound(f"There is no {thing}.", reason="THING_NOT_FOUND", field="thing")\n'
    )
    assert reference.raised([tmp_path]) == {("THING_NOT_FOUND", "NotFound"): {"There is no …."}}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def anchors(text: str) -> set[str]:
    """The anchors that readers of Markdown make of headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OPERATORS)
def test_the_commands_of_the_operators_pages_exist_with_their_options(page: str) -> None:
    text = (DOCS / "howto" / f"{page}.md").read_text()
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines() if re.match(r" *suanli ", line)]
    spoken = [*lines, *re.findall(r"`(suanli [a-z][^`]*)`", text)]
    assert spoken
    for line in spoken:
        check_command(line.partition(" -- ")[0].partition(" > ")[0].split()[1:])


def check_command(words: list[str]) -> None:
    """Fail unless the command is there and has all the options; values are not looked at."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, words
        command, words = found, words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    assert {word for word in words if word.startswith("-")} <= known, words


@pytest.mark.parametrize("page", OPERATORS)
def test_the_configuration_files_of_the_operators_pages_are_taken(page: str, tmp_path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "howto" / f"{page}.md").read_text(), re.M | re.DOTALL):
        document = yaml.safe_load(block)
        if isinstance(document.get("region"), dict):
            values = tmp_path / "values.yaml"
            values.write_text(block)
            assert chart.render("--values", str(values))
        elif "region" in document:
            assert parse_config(document, tmp_path).region == document["region"]
        else:
            assert config_from(document, tmp_path).state_dir == tmp_path / document["state_dir"]
