"""Groups of commands of which one needs no name."""

from __future__ import annotations

from typing import Any

import click


class DefaultGroup(click.Group):
    """``suanli usage --by month`` is ``suanli usage show --by month``: options first are the default's, and (``bare``) nothing at all."""

    def __init__(self, *args: Any, default: str, bare: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._default = default
        self._bare = bare

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the name in where options stand first."""
        if (self._bare and not args) or (args and args[0][:1] == "-" and args[0] not in ctx.help_option_names):
            args = [self._default, *args]
        return super().parse_args(ctx, args)
