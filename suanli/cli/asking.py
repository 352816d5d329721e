"""Asking before what cannot be undone."""

from __future__ import annotations

import sys

import click

from suanli.cli.exits import REFUSED
from suanli.cli.human import safe
from suanli.cli.runtime import Failure


def confirm(question: str, yes: bool) -> None:
    """Go on when ``yes`` was given or a person at a terminal says so; a ``Failure`` with code 6 otherwise."""
    if yes:
        return
    if not at_terminal():
        raise Failure("Nothing was changed; say it again with --yes.", REFUSED)
    if not click.confirm(safe(question), err=True):
        raise Failure("Nothing was changed.", REFUSED)


def at_terminal() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty()
