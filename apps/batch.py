"""Folders of pictures without a browser: ``python -m apps.batch --app canny --input photos --output out``."""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm.contrib.logging import logging_redirect_tqdm

import annotators
from annotators.networks import find_weights, stand_in_words
from apps.batching.files import check_writable
from apps.batching.options import Options, parse_options
from apps.batching.pictures import Found, Prompts, find_pictures
from apps.batching.run import Plan, Report, plan, run
from apps.batching.tasks import MAPS, Drawing, TrainingSet, Work
from apps.page.settings import DETECT
from core.errors import SuiteError

if TYPE_CHECKING:
    from apps.page.model import Pipeline

SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 where nothing failed, 1 otherwise, 130 after Ctrl-C.

    Raises:
        SystemExit: the command line is wrong (2), or only help was wanted (0).
    """
    cli, options = parse_options(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that a terminal lacks
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    found, prompts = _look(cli, options)
    try:
        check_writable(options.output)
        work = _work(options, prompts)
        with logging_redirect_tqdm():
            return _run(options, found, work)
    except (ValueError, SuiteError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped with Ctrl-C before the first picture.", file=sys.stderr)
        return 130


def _look(cli: argparse.ArgumentParser, options: Options) -> tuple[Found, Prompts]:
    """Find the pictures and their prompts, and set the device; what is wrong here is wrong usage."""
    try:
        reserved = () if options.maps_only else (MAPS,)
        found = find_pictures(options.input, options.output, recursive=options.recursive, reserved=reserved)
        prompts = Prompts(options.prompts, options.prompt, bare=not options.recursive)
        if (options.device, options.dtype) != ("auto", "auto"):
            from annotators import networks

            networks.configure(device=options.device, dtype=options.dtype)
    except ValueError as error:
        cli.error(str(error))
    needless = options.maps_only or options.values["guess_mode"]
    given = options.prompt is not None or options.prompts is not None
    if not (needless or given or any(p.path.with_suffix(".txt").is_file() for p in found.pictures)):
        cli.error(
            "There is no prompt: give --prompt, --prompts FILE, .txt files beside them, or --guess-mode."
        )
    return found, prompts


def _work(options: Options, prompts: Prompts) -> Work:
    """Say what is to do.

    Raises:
        WeightsMissing: the detector's weights are not here; says how to get them.
    """
    weights = None
    if options.values["preprocessor"] == DETECT:
        annotator = annotators.load(options.app.annotator)
        if annotator.weights is not None:
            used = find_weights(annotator.weights, annotator.demo_weights)
            weights = used.name
            if used.demo:
                print(stand_in_words(used, annotator.weights))
    return Work(
        options.app, options.output, options.declared, options.values, prompts, weights, options.pose_json
    )


def _run(options: Options, found: Found, work: Work) -> int:
    task = TrainingSet(work) if options.maps_only else _drawing(options, work)
    if isinstance(task, TrainingSet):
        task.read_index()  # a damaged one should be known before hours of work
    report = Report()
    pictures = found.pictures[: options.limit]
    planned = plan(task, pictures, report)
    if planned.changed and not options.overwrite:
        raise SuiteError(_told_changed(planned, options))
    if planned.todo:
        if isinstance(task, Drawing):
            title = task.prepare().title
            print(f"{title} draws {len(planned.todo)} of {len(pictures)} pictures into {options.output}.")
        run(task, planned.todo, report)
    if isinstance(task, TrainingSet):
        _write_index(task, report)
    if found.others:
        print(f"Passed over, as no pictures: {len(found.others)} files, such as {found.others[0]}.")
    print("\n".join(report.lines()))
    return report.status


def _write_index(task: TrainingSet, report: Report) -> None:
    try:
        empty = task.write_index([*report.skipped, *report.made])
    except OSError as error:
        report.stopped = f"{task.index} cannot be written ({error.strerror}): give the same command again."
        return
    if empty:
        print(f"{empty} lines of {task.index} have no prompt: give --prompt, --prompts or .txt files.")


def _told_changed(planned: Plan, options: Options) -> str:
    first = [f"  {source}: {what}" for source, what in list(planned.changed.items())[:SHOWN]]
    more = [f"  and {len(planned.changed) - SHOWN} more"] if len(planned.changed) > SHOWN else []
    return "\n".join(
        [
            f"{len(planned.changed)} of the pictures were made otherwise before, in {options.output}:",
            *first,
            *more,
            "Nothing was made. Give --overwrite to make these again, or another --output.",
        ]
    )


def _drawing(options: Options, work: Work) -> Drawing:
    return Drawing(work, options.model, lambda: _load(options), options.clip_skip, options.additions)


def _load(options: Options) -> Pipeline:
    from core import load_pipeline

    return load_pipeline(
        options.model,
        device=options.device,
        dtype=options.dtype,
        low_vram=options.low_vram,
        clip_skip=options.clip_skip,
        embeddings=options.embeddings,
        loras=options.additions.loras,
        vae=options.additions.vae,
        transfer_from=options.additions.transfer_from,
        parameterization=options.additions.parameterization,
        vae_dtype=options.computing.vae_dtype,
        compile=options.computing.compile,
        graphs=options.computing.graphs,
    )


if __name__ == "__main__":
    sys.exit(main())
