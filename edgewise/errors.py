"""What goes wrong outside our code: one line to the user, never a traceback."""

from __future__ import annotations


class EdgewiseError(Exception):
    """A mistake of the user or the surroundings: one clear line (what, where, legal values).

    The command prints it and exits with status 2.
    """


class Diverged(EdgewiseError):
    """Training came to numbers that are not finite. The run's folder says so (`records.DIVERGED`)."""


class EdgewiseWarning(UserWarning):
    """Something legal that the user would want to know, said once."""
