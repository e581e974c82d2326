"""Command line of the toy world: `python -m core.training.toyworld sheet OUT.png [--seed N] [--count 32]`."""

import argparse
from pathlib import Path

from .sheet import write_sheet
from .sprites import SpriteLibrary


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m core.training.toyworld", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="write a contact sheet of scenes with their captions")
    sheet.add_argument("out", type=Path, help="PNG to write")
    sheet.add_argument("--seed", type=int, default=0, help="seed of the first scene (default 0)")
    sheet.add_argument("--count", type=int, default=32, help="number of scenes (default 32)")
    sheet.add_argument("--size", type=int, default=256, help="side of a scene in pixels (default 256)")
    arguments = parser.parse_args()
    write_sheet(arguments.out, SpriteLibrary.load(), arguments.seed, arguments.count, arguments.size)


if __name__ == "__main__":
    main()
