"""What the pages tell people to type is what the command understands."""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from scheduler.domain.states import AttemptOutcome
from scheduler.metering.price_document import dump as dump_prices
from scheduler.metering.price_text import read_prices
from scheduler.metering.price_warnings import Site, warnings
from scheduler.metering.prices import PriceBook
from scheduler.planning.policy import PRESETS
from scheduler.planning.policy_document import dump
from scheduler.planning.policy_text import read_policy
from suanli.cli.job_file import read_job_file
from suanli.cli.main import cli
from suanli.spec import build_spec
from tests.unit.cli.tools import REPOSITORY

HOWTO = REPOSITORY / "docs/howto"
PAGES = ["submit-a-job", "gangs", "arrays-and-dependencies", "quotas", "usage", "focus", "policy", "prices"]
POLICIES = {"policy"}
"""Pages whose YAML is policies, not jobs."""
PRICES = {"prices"}
"""Pages whose YAML is price lists."""


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", (HOWTO / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words after ``suanli`` of each line, up to a pipe or a redirection."""
    found = []
    for line in "".join(blocks(page, "sh")).splitlines():
        text = re.sub(r"^.*?\bsuanli ", "", line) if "suanli " in line else ""
        lexer = shlex.shlex(text.removesuffix(")"), posix=True, punctuation_chars="|>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
        ends = [index for index, word in enumerate(words) if word in ("|", ">")]
        if words:
            found.append(words[: ends[0]] if ends else words)
    return found


def parsed(words: list[str]) -> click.Context:
    """Have click read a command line as far as running it."""
    command: click.Command = cli
    context = cli.make_context("suanli", list(words))
    while isinstance(command, click.Group):
        name, inner, rest = command.resolve_command(context, context._protected_args + context.args)
        assert inner is not None
        context = inner.make_context(name, rest, parent=context)
        command = inner
    return context


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_understood(page: str) -> None:
    found = commands(page)
    assert len(found) >= 2
    for words in found:
        assert parsed(words).command.name, words


@pytest.mark.parametrize("page", [page for page in PAGES if page not in POLICIES | PRICES and blocks(page, "yaml")])
def test_the_job_files_of_a_page_are_good(page: str, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        path = tmp_path / "jobs.yaml"
        path.write_text(text)
        for job in read_job_file(str(path)).jobs:
            build_spec({key: value for key, value in job.items() if key != "folder"})


@pytest.mark.parametrize("page", sorted(POLICIES))
def test_the_policies_of_a_page_are_good(page: str) -> None:
    texts = blocks(page, "yaml")
    assert len(texts) == 4
    for text in texts:
        read_policy(text)


def test_the_page_of_the_policy_tells_every_setting() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (HOWTO / "policy.md").read_text(), re.MULTILINE)
    told = {name.split(".")[-1] for row in rows for name in re.findall(r"`([^`]+)`", row)}

    def settings(value: object) -> set[str]:
        if not isinstance(value, dict):
            return set()
        return {name for key, inner in value.items() for name in (settings(inner) or {key})}

    assert settings(dump(PRESETS["fair"])) - {"pools", "data_sets", "speed", "bandwidth"} <= told
    assert set(PRESETS) <= told


def test_the_price_list_of_its_page_is_good_and_has_no_rate_in_vain() -> None:
    (text,) = blocks("prices", "yaml")
    prices = read_prices(text).price_list
    sites = {Site("east", "gpu-a100", "A100"), Site("east", "old", "V100"), Site("west", "cpu", "")}
    tenants = {("beishan", ""), ("beishan", "thesis"), ("nanhu", "")}

    (warning,) = warnings(prices, PriceBook(), prices.from_ms, sites, tenants)
    assert "from 2028-09-01 on no price list" in warning


def test_the_page_of_prices_tells_every_setting() -> None:
    (text,) = blocks("prices", "yaml")
    rows = re.findall(r"^\| (`.*?) \|", (HOWTO / "prices.md").read_text(), re.MULTILINE)
    told = {name.split(".")[-1] for row in rows for name in re.findall(r"`([^`]+)`", row)}

    def settings(value: object) -> set[str]:
        if isinstance(value, list):
            return set().union(*map(settings, value))
        if not isinstance(value, dict):
            return set()
        return set(value).union(*map(settings, value.values()))

    # The whole document uses all there is: no setting but those may be written.
    used = settings(yaml.safe_load(text))
    assert set(dump_prices(read_prices(text).price_list)) <= used
    headings = {"rates", "service_units", "discounts", "free", "energy"}
    names = {"A100", "V100", "east", "default"}
    assert used - headings - names <= told
    outcomes = [outcome.name.lower().replace("_", "-") for outcome in AttemptOutcome if outcome.name != "SUCCEEDED"]
    assert all(f"`{outcome}`" in (HOWTO / "prices.md").read_text() for outcome in outcomes)


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*(HOWTO / f"{name}.md" for name in PAGES), REPOSITORY / "docs/reference/cli.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
