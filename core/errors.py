"""Errors that a person can mend; every message ends with what to do."""

from __future__ import annotations


class SuiteError(RuntimeError):
    """The base of the errors that the page shows in its own words."""


class WeightsMissing(SuiteError):
    """A weight file is not here; the message says its size, its licence and the command that gets it."""


class CheckpointMismatch(SuiteError):
    """A weight file is not what it should be; the message names it, what it seems to be, and keys."""


class NumericalError(SuiteError):
    """The latents are no longer finite; the message says which setting helps."""
