"""Ctrl-C where there is no run to resume: one line that says what became of the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

INTERRUPTED = 130  # the exit status of what SIGINT ended


@contextmanager
def stopped_with(words: str) -> Iterator[None]:
    """End the command with `words` and status 130 if Ctrl-C stops what is inside."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(f"edgewise: interrupted; {words}", err=True)
        raise SystemExit(INTERRUPTED) from None
