"""The exception tree: every failure a user can cause is one sentence with the value and the cure.

RoofplanError
├── BadInput          exit code 2: the input is wrong (value, file, name)
│   ├── UnknownName   a model, GPU or technique that is not in the registry
│   └── BadFile       a file that cannot be read as what it should be
└── CheckFailed       exit code 1: a check failed or no plan fits
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RoofplanError(Exception):
    """Base of all errors raised on purpose."""


class BadInput(RoofplanError):
    """The input is wrong; the message says what, which value, what is legal, and the cure."""


class UnknownName(BadInput):
    """A name that no registry knows; the message lists the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name[:80].lower(), names, n=4, cutoff=0.4) or names[:8]
        super().__init__(f"unknown {kind} {name[:80]!r}; nearest: {', '.join(near)} ({len(names)} known)")


class BadFile(BadInput):
    """A file that is missing, truncated, too large or malformed."""


class CheckFailed(RoofplanError):
    """A check ran and failed, or no plan fits: exit code 1."""
