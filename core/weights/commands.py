"""The commands that tell what a weight file is, and that make files of files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.weights.registry import Registry, size_text

if TYPE_CHECKING:
    import torch

DTYPES = ("keep", "float32", "float16", "bfloat16")
FILE = "a file, or a name that `list` shows"


def add_commands(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands; each sets ``run``, which takes the registry and the options, and returns 0."""
    p = _command(commands, "add-control", _add_control, "make a ControlNet to train of a base model")
    p.add_argument("base", metavar="BASE", help=f"the base model, SD 1.x, 2.x or demo: {FILE}")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="decides the fresh hint block; default 0")
    _output(p, "float32")

    p = _command(commands, "transfer", _transfer, "move a ControlNet to another base model")
    p.add_argument("control", metavar="CONTROL", help=f"the ControlNet: {FILE}")
    p.add_argument("--from", dest="source", metavar="BASE", help="the base model that it was trained on")
    p.add_argument("--to", dest="target", metavar="OTHER", required=True, help="the base model to move to")
    _output(p, "float32")

    p = _command(commands, "extract", _extract, "take the ControlNet alone out of a file")
    p.add_argument("control", metavar="FILE", help=f"what holds a ControlNet: {FILE}")
    _output(p, "float16")

    p = _command(commands, "diff", _diff, "write a ControlNet as the difference to its base model")
    p.add_argument("control", metavar="CONTROL", help=f"the ControlNet: {FILE}")
    p.add_argument("base", metavar="BASE", help=f"the base model that it was trained on: {FILE}")
    _output(p, "float16")

    p = _command(commands, "merge", _merge, "mix two ControlNets, or two base models")
    p.add_argument("first", metavar="A", help=f"one of them: {FILE}")
    p.add_argument("second", metavar="B", help=f"the other: {FILE}")
    p.add_argument("--alpha", type=float, default=0.5, metavar="N", help="B's share, 0 to 1; default 0.5")
    _output(p, "keep")

    p = _command(commands, "convert", _convert, "write a file in the diffusers layout, or from that layout")
    p.add_argument("file", metavar="FILE", help=f"{FILE}; or a folder of diffusers")
    _output(p, "keep", "NAME.safetensors for the original's layout; any other name for a folder of diffusers")

    p = _command(commands, "info", _info, "tell what a file is, and what it is good for")
    p.add_argument("files", nargs="+", metavar="FILE", help=FILE)


def _command(
    commands: argparse._SubParsersAction[Any],
    name: str,
    run: Callable[[Registry, argparse.Namespace], int],
    help: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}."
    )
    parser.set_defaults(run=run)
    return parser


def _output(
    parser: argparse.ArgumentParser, dtype: str, help: str = "the .safetensors file to write"
) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help=help)
    parser.add_argument("--dtype", choices=DTYPES, default=dtype, help=f"its numbers; default {dtype}")
    parser.add_argument("--overwrite", action="store_true", help="write over a file that is there")


def find(registry: Registry, name: str) -> Path:
    """Return a file's path: given as it is, or by its name in the registry."""
    if not Path(name).exists() and name in registry.files:
        return registry.locate(name)
    return Path(name)


def _dtype(options: argparse.Namespace) -> torch.dtype | None:
    import torch

    return None if options.dtype == "keep" else getattr(torch, options.dtype)


def _told(out: Path, size: int) -> int:
    from core.weights.describe import describe

    print(f"Wrote {out}, {size_text(size)}.")
    print("\n".join(line for line in describe(out)[1:] if not line.startswith("metadata:")))
    return 0


def _add_control(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.controls import add_control

    base, out = find(registry, options.base), options.out
    size = add_control(base, out, dtype=_dtype(options), seed=options.seed, overwrite=options.overwrite)
    return _told(out, size)


def _transfer(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.controls import transfer

    control, target = (find(registry, name) for name in (options.control, options.target))
    source = None if options.source is None else find(registry, options.source)
    size = transfer(control, source, target, options.out, dtype=_dtype(options), overwrite=options.overwrite)
    return _told(options.out, size)


def _extract(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.controls import extract

    control = find(registry, options.control)
    size = extract(control, options.out, dtype=_dtype(options), overwrite=options.overwrite)
    return _told(options.out, size)


def _diff(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.controls import diff

    control, base = (find(registry, name) for name in (options.control, options.base))
    size = diff(control, base, options.out, dtype=_dtype(options), overwrite=options.overwrite)
    return _told(options.out, size)


def _merge(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.merging import merge

    first, second = (find(registry, name) for name in (options.first, options.second))
    size = merge(
        first,
        second,
        options.out,
        alpha=options.alpha,
        dtype=_dtype(options),
        overwrite=options.overwrite,
    )
    return _told(options.out, size)


def _convert(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.diffusers_folders import from_diffusers, to_diffusers

    path, out, dtype = find(registry, options.file), options.out, _dtype(options)
    if out.suffix == ".safetensors":
        return _told(out, from_diffusers(path, out, dtype=dtype, overwrite=options.overwrite))
    left_out = to_diffusers(path, out, dtype=dtype, overwrite=options.overwrite)
    files = sorted(found for found in out.rglob("*") if found.is_file())
    print(f"Wrote {out}, {size_text(sum(file.stat().st_size for file in files))}:")
    print("\n".join(f"  {file.relative_to(out)}" for file in files))
    for what in left_out:
        print(f"Left out: {what}.")
    return 0


def _info(registry: Registry, options: argparse.Namespace) -> int:
    from core.weights.describe import describe

    paths = [path for name in options.files for path in _inside(find(registry, name))]
    print("\n\n".join("\n".join(describe(path)) for path in paths))
    return 0


def _inside(path: Path) -> list[Path]:
    """Return a folder's weight files; a file, or a folder without any, as it is."""
    files = sorted(file for file in path.rglob("*") if file.suffix in {".safetensors", ".bin"})
    return files or [path]
