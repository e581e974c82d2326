"""Command line of the toy world.

python -m core.training.toyworld sheet OUT.png [--seed N] [--count 32]   pictures with their captions
python -m core.training.toyworld sheet OUT.png --truth                   and the maps that are true of them
python -m core.training.toyworld vocabulary                              write vocabulary.txt anew
python -m core.training.toyworld bench [--truth]                         scenes per second on one core
"""

import argparse
import time
from pathlib import Path

import cv2

from .scene import make_scene
from .sheet import write_sheet
from .sprites import SpriteLibrary, default_cache_dir, fetch_sprites
from .vocabulary import write_vocabulary


def bench(count: int = 400, truth: bool = False) -> float:
    """Return scenes per second at 256 px on one core, after a warm-up that fills the repainted sprites."""
    cv2.setNumThreads(1)
    library = SpriteLibrary.load()
    for seed in range(count):
        make_scene(seed, library, truth=truth)
    start = time.perf_counter()
    for seed in range(count, 2 * count):
        make_scene(seed, library, truth=truth)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m core.training.toyworld",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="write a contact sheet of scenes with their captions")
    sheet.add_argument("out", type=Path, help="PNG to write")
    sheet.add_argument("--seed", type=int, default=0, help="seed of the first scene (default 0)")
    sheet.add_argument("--count", type=int, default=32, help="number of scenes (default 32)")
    sheet.add_argument("--size", type=int, default=256, help="side of a scene in pixels (default 256)")
    commands.add_parser("vocabulary", help="write vocabulary.txt anew from captions and sprite names")
    speed = commands.add_parser("bench", help="measure scenes per second on one core")
    for command in (sheet, speed):
        command.add_argument("--truth", action="store_true", help="make the maps of each scene, too")
    arguments = parser.parse_args()
    if arguments.command == "vocabulary":
        print(f"{write_vocabulary(fetch_sprites(default_cache_dir()))} words")
    elif arguments.command == "bench":
        print(f"{bench(truth=arguments.truth):.0f} scenes/s")
    else:
        write_sheet(arguments.out, SpriteLibrary.load(), arguments.seed, arguments.count, arguments.size,
                    arguments.truth)  # fmt: skip


if __name__ == "__main__":
    main()
