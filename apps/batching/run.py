"""The run over a folder: what is there already, what there is to make, and what came of it."""

from __future__ import annotations

import errno
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from apps.batching.files import difference, digest_of
from apps.batching.pictures import Picture
from apps.page.settings import Settings
from core.errors import CheckpointMismatch, SuiteError, WeightsMissing

log = logging.getLogger(__name__)

Facts = Mapping[str, Any]
OnStep = Callable[[int, int], None]  # given the step and the number of steps

PLAN_BAR_SECONDS = 2
DISK_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
INTERNAL = "something went wrong inside ({}): the lines above have the details"


@dataclass(frozen=True, slots=True)
class Job:
    """One picture and the settings for it."""

    picture: Picture
    settings: Settings


class Task(Protocol):
    """What is made of each picture."""

    def settings(self, picture: Picture) -> Settings:
        """Return the settings for a picture, its prompt among them; ValueError where that fails."""

    def facts(self, settings: Settings) -> Facts:
        """Return everything that a picture's files depend on, but for the picture itself."""

    def targets(self, picture: Picture) -> tuple[Path, ...]:
        """Return the files that are made of a picture."""

    def stored(self, path: Path) -> Facts | None:
        """Return the facts in one of the PNG files, or None where it carries none."""

    def make(self, job: Job, facts: Facts, on_step: OnStep) -> str:
        """Make a picture's files; return a doubt about its map, or an empty text."""


@dataclass(slots=True)
class Report:
    """What came of a run: pictures by what happened to them, and why it stopped early, if it did.

    ``notes`` counts the doubts about maps; ``interrupted`` tells that somebody pressed Ctrl-C.
    """

    made: list[Job] = field(default_factory=list)
    skipped: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    left: int = 0
    stopped: str = ""
    interrupted: bool = False

    @property
    def status(self) -> int:
        """The exit status: 0 where nothing failed, 130 after Ctrl-C as shells have it, else 1."""
        if self.interrupted:
            return 130
        return 1 if self.failed or self.stopped else 0

    def lines(self) -> list[str]:
        """Return the summary."""
        said = [f"Made {len(self.made)}, skipped {len(self.skipped)}, failed {len(self.failed)}."]
        if self.left:
            said.append(f"Not reached: {self.left}. The same command goes on from here.")
        if self.stopped:
            said.append(self.stopped)
        said += [f"  {count} of the maps: {note}" for note, count in self.notes.most_common()]
        said += [f"  {source}: {reason}" for source, reason in self.failed.items()]
        return said


@dataclass(slots=True)
class Plan:
    """The jobs to do; ``changed`` says of each picture made otherwise before in what that differs."""

    todo: list[Job] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)


def plan(task: Task, pictures: Sequence[Picture], report: Report) -> Plan:
    """Sort the pictures: those to make, among them those made otherwise before, and in ``report`` the rest.

    A picture is skipped where every file is there and was made from the same picture with the same settings.
    """
    planned = Plan()
    for picture in tqdm(pictures, "Comparing", leave=False, disable=None, delay=PLAN_BAR_SECONDS):
        try:
            _check_name(picture)
            job = Job(picture, task.settings(picture))
            changed, whole = _compare(task, job)
        except (ValueError, OSError) as error:
            report.failed[picture.source] = str(error)
            continue
        if whole and not changed:
            report.skipped.append(job)
            continue
        planned.todo.append(job)
        if changed:
            planned.changed[picture.source] = changed
    return planned


def _check_name(picture: Picture) -> None:
    try:
        picture.source.encode()
    except UnicodeEncodeError:  # Linux allows any bytes as a name, but JSON and PNG texts do not
        raise ValueError("its name is no UTF-8 text: rename it") from None


def _compare(task: Task, job: Job) -> tuple[str, bool]:
    """Return in what the files that are there differ from those wanted, and whether all are there."""
    targets = task.targets(job.picture)
    there = [path for path in targets if path.exists()]
    if not there:
        return "", False
    wanted = {**task.facts(job.settings), **_source_facts(job.picture)}
    differences = (
        found for path in there if path.suffix == ".png" and (found := difference(wanted, task.stored(path)))
    )
    return next(differences, ""), len(there) == len(targets)


def _source_facts(picture: Picture) -> Facts:
    return {"source": picture.source, "source_digest": digest_of(picture.path)}


def run(task: Task, jobs: Sequence[Job], report: Report) -> None:
    """Do the jobs one after the other; one that fails does not stop the rest, a full disk or Ctrl-C does."""
    reached = 0
    with tqdm(jobs, unit="picture", disable=None) as bar:

        def on_step(step: int, total: int) -> None:
            bar.set_postfix_str(f"{job.picture.source}, step {step} of {total}")

        try:
            for job in bar:
                _do(task, job, report, on_step)
                reached += 1
                if report.stopped:
                    break
        except KeyboardInterrupt:
            report.interrupted = True
            report.stopped = "Stopped with Ctrl-C; every file is whole."
    report.left = len(jobs) - reached


def _do(task: Task, job: Job, report: Report, on_step: OnStep) -> None:
    source = job.picture.source
    try:
        facts = {**task.facts(job.settings), **_source_facts(job.picture)}
        note = task.make(job, facts, on_step)
    except (WeightsMissing, CheckpointMismatch) as error:  # the next picture would fare no better
        report.failed[source] = "weights could not be used"
        report.stopped = str(error)
    except (ValueError, SuiteError) as error:
        report.failed[source] = str(error)
    except OSError as error:
        report.failed[source] = f"{error.strerror or error} ({error.filename or job.picture.path})"
        if error.errno in DISK_LOST:
            report.stopped = "The output can take no more: free some space and give the same command again."
    except Exception as error:
        log.exception("%s failed.", source)
        report.failed[source] = INTERNAL.format(type(error).__name__)
    else:
        report.made.append(job)
        if note:
            report.notes[note] += 1
    if source in report.failed:
        tqdm.write(f"{source}: {report.failed[source]}", file=sys.stderr)
