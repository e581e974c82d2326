"""The command line: what to do with which folder, and every setting of the page by its name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import annotators
from annotators.base import Checkbox, Slider
from apps import additions, all_apps, computing, find_apps
from apps.additions import Additions
from apps.computing import Computing
from apps.page.model import choose, describe
from apps.page.settings import DETECT, Choice, Number, Setting, Text, declare_app, parse
from apps.spec import App
from core.config import config_names

DEFAULT_SEED = 0
MAPS_MODEL = "sd15"  # whose resolution a training set gets, whatever weights are here
USAGE = "python -m apps.batch --app NAME --input FOLDER --output FOLDER [--prompt TEXT] [options]"
ABOUT = "Make a picture of each picture of a folder, or, with --maps-only, a set to train a ControlNet on."
MORE = "With --app NAME, --help also lists that detector's own settings. See docs/batch.md."
SEED_HELP = "The same for every picture; -1 takes a new one for each."


@dataclass(frozen=True, slots=True)
class Options:
    """A checked command line. ``model`` is a name or a path; ``values`` are the settings by name."""

    app: App
    input: Path
    output: Path
    prompt: str | None
    prompts: Path | None
    recursive: bool
    limit: int | None
    overwrite: bool
    maps_only: bool
    pose_json: bool
    model: str
    device: str
    dtype: str
    low_vram: bool
    clip_skip: int | None
    embeddings: Path | None
    additions: Additions
    computing: Computing
    declared: tuple[Setting, ...]
    values: Mapping[str, Any]


def parse_options(arguments: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, Options]:
    """Read the command line; also return its parser, which tells of errors found later.

    Raises:
        SystemExit: it is wrong (status 2), or only help was wanted (0).
    """
    first = _first_parser()
    known, _ = first.parse_known_args(arguments)
    cli = _parser()
    try:
        app = None if known.app is None else _find_app(known.app)
        declared, model = _declared(app or all_apps()[0], known.model, known.maps_only)
    except ValueError as error:
        cli.error(str(error))
    shown = declared if app is not None else _common(declared)
    settings = cli.add_argument_group("settings, as on the page")
    for setting in shown:
        _add_setting(settings, setting)
    args = cli.parse_args(arguments)
    if app is None:
        cli.error(f"--app is missing: give one of {', '.join(a.name for a in all_apps())}.")
    values = {setting.name: getattr(args, setting.name) for setting in declared}
    try:
        options = Options(
            app, args.input, args.output, args.prompt, args.prompts, args.recursive, args.limit,
            args.overwrite, args.maps_only, args.pose_json, model, args.device, args.dtype, args.low_vram,
            args.clip_skip, args.embeddings, Additions.read(args),
            Computing.read(args), declared, values,
        )  # fmt: skip
        check(options)
    except ValueError as error:
        cli.error(str(error))
    return cli, options


def check(options: Options) -> None:
    """Check what depends on several options.

    Raises:
        ValueError: says what does not fit.
    """
    parse({**options.values, "prompt": options.prompt or ""}, options.declared)
    detects = options.values["preprocessor"] == DETECT
    if options.maps_only and not detects:
        raise ValueError("--maps-only makes maps of photos: leave --preprocessor out.")
    if options.pose_json and (options.app.annotator != "pose" or not detects):
        raise ValueError("--pose-json needs key points: give --app pose, and leave --preprocessor out.")
    source, target = options.input.resolve(), options.output.resolve()
    if source == target:
        raise ValueError("--output is the --input folder: give another, so that no picture is written over.")
    own = [target / name for name in ("maps", "source", "target", "pose")]
    parents = (source, *source.parents)
    if any(folder in parents for folder in own) or (options.recursive and target in parents):
        raise ValueError(f"--input {options.input} lies inside of --output: give another --output.")


def _find_app(name: str) -> App:
    try:
        return find_apps([name])[0]
    except ValueError:
        listed = ", ".join(app.name for app in all_apps())
        raise ValueError(f"There is no app {name!r}: give one of {listed}.") from None


def _declared(app: App, model: str, maps_only: bool) -> tuple[tuple[Setting, ...], str]:
    """Return the settings with this model's defaults, and the model's name or path."""
    chosen = MAPS_MODEL if maps_only and model.lower() == "auto" else choose(model, [app.control])
    _, resolution, cfg_scale = describe(chosen)
    settings = declare_app(app, resolution, cfg_scale)
    seeded = (
        replace(s, default=DEFAULT_SEED, info=SEED_HELP) if isinstance(s, Number) and s.name == "seed" else s
        for s in settings
    )
    return tuple(seeded), chosen


def _common(declared: Sequence[Setting]) -> tuple[Setting, ...]:
    own = {s.name for s in annotators.load(all_apps()[0].annotator).params}
    return tuple(s for s in declared if s.name not in {*own, "detect_resolution", "auto_resolution"})


def _first_parser() -> argparse.ArgumentParser:
    """Return a parser of what the other options depend on."""
    p = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    p.add_argument("--app")
    p.add_argument("--model", default="auto")
    p.add_argument("--maps-only", action="store_true")
    return p


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m apps.batch", usage=USAGE, description=ABOUT, epilog=MORE, allow_abbrev=False
    )
    names = ", ".join(app.name for app in all_apps())
    p.add_argument("--app", metavar="NAME", help=f"What to control with: {names}.")
    p.add_argument("--input", type=Path, required=True, metavar="FOLDER", help="Where the pictures are.")
    p.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="Where to write.")
    p.add_argument("--prompt", metavar="TEXT", help="What to draw, for every picture without its own.")
    p.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='A prompt for each picture: JSON lines {"source": "NAME.jpg", "prompt": "..."}. Without a line '
        "there, a .txt file beside the picture counts.",
    )
    p.add_argument("--recursive", action="store_true", help="Look into the folders in the folder too.")
    p.add_argument("--limit", type=_positive, metavar="N", help="Take the first N pictures by name only.")
    p.add_argument(
        "--overwrite",
        action="store_true",
        help="Make those again that were made with other settings; the rest is skipped as always.",
    )
    p.add_argument(
        "--maps-only",
        action="store_true",
        help="Make a training set: the maps in source/, the photos at their size in target/, prompt.json.",
    )
    p.add_argument("--pose-json", action="store_true", help="With --app pose: write the key points too.")
    _add_model(p)
    return p


def _add_model(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model",
        default="auto",
        metavar=f"auto|{'|'.join(config_names())}|PATH",
        help="The model that draws, as for launch.py.",
    )
    p.add_argument("--device", default="auto", help="Where to compute: auto, cpu, cuda, cuda:1 or mps.")
    p.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="The numbers to compute with.",
    )
    p.add_argument("--low-vram", action="store_true", help="Keep on the GPU only the part that computes.")
    p.add_argument(
        "--clip-skip", type=_positive, metavar="N", help="The text encoder's layer to read, from the end."
    )
    p.add_argument("--embeddings", type=_folder, metavar="DIR", help="Where the textual-inversion files are.")
    additions.add_options(p)
    computing.add_options(p)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such folder.")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1.")
    return int(text)


def _add_setting(group: argparse._ArgumentGroup, setting: Setting) -> None:
    """Add one setting under its own name with dashes."""
    flag = f"--{setting.name.replace('_', '-')}"
    told = [f"{setting.label}." if not setting.info else f"{setting.label}: {setting.info}"]
    if isinstance(setting, Checkbox):
        told.append(f"Default: {'yes' if setting.default else 'no'}.")
        action = argparse.BooleanOptionalAction
        group.add_argument(flag, action=action, default=setting.default, help=_plain(told))
        return
    if isinstance(setting, Slider):
        told.append(f"From {setting.minimum:.10g} to {setting.maximum:.10g}; default {setting.default:g}.")
    elif isinstance(setting, Choice):
        told.append(f"One of {', '.join(word for word, _ in setting.choices)}; default {setting.default}.")
    elif setting.default:
        told.append(f"Default: {setting.default}.")
    metavar = "TEXT" if isinstance(setting, Text) else "WORD" if isinstance(setting, Choice) else "N"
    group.add_argument(
        flag, type=_reader(setting), default=setting.default, metavar=metavar, help=_plain(told)
    )


def _plain(told: Sequence[str]) -> str:
    return " ".join(told).replace("%", "%%")  # argparse fills in what follows a single one


def _reader(setting: Setting) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return setting.check(_number(text) if isinstance(setting, Slider) else text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
