"""What the commands that make the demo model can be told: their options, and where its files lie."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from core.config import CONTROL_VARIANTS

RUNS = Path("runs/demo")
CKPTS = Path(__file__).parents[2] / "ckpts" / "demo"
DETECTORS = ("depth", "pose", "segmentation")
TURNS = ("canny", "openpose", "seg", "mlsd", "depth", "normal", "hed", "scribble")


def add_stages(commands: argparse._SubParsersAction) -> None:
    """Add the commands, in the order in which they are needed."""
    _add_scenes(commands)
    _add_autoencoder(commands)
    _add_base(commands)
    _add_controls(commands)
    _add_naming(commands)
    _add_stream(commands)
    _add_detector(commands)
    _add_files(commands)
    _add_measures(commands)


def _stage(commands: argparse._SubParsersAction, name: str, words: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=words, description=words)
    parser.add_argument("--data", type=Path, default=RUNS / "scenes", help="folder of the rendered scenes")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the runs' checkpoints")
    return parser


def _training(parser: argparse.ArgumentParser, *, steps: int, rate: float, batch: int) -> None:
    parser.add_argument("--steps", type=int, default=steps, help=f"optimiser steps in all (default {steps})")
    parser.add_argument("--minutes", type=float, help="end this run after so long; the next one resumes")
    words = "share of --minutes, at their end, in which the rate falls to zero, for a run ended by the clock"
    parser.add_argument("--fall", type=float, default=0.0, help=words)
    parser.add_argument("--rate", type=float, default=rate, help=f"learning rate (default {rate:g})")
    parser.add_argument("--warmup", type=int, default=100, help="first steps, over which the rate rises")
    parser.add_argument("--decay", type=int, default=0, help="last steps over which the rate falls to zero")
    parser.add_argument("--batch", type=int, default=batch, help=f"samples a step (default {batch})")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw", help="default adamw")
    words = (
        "of what is drawn by chance (default 0): another one for a run that goes on from exported files, "
        "which would see the same scenes again in the same order"
    )
    parser.add_argument("--seed", type=int, default=0, help=words)
    _device(parser)


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")


def _ckpts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the exported files")


def _crop(parser: argparse.ArgumentParser) -> None:
    words = "train on squares of so many pixels (default the whole)"
    parser.add_argument("--crop", type=int, help=words)


def _framed(parser: argparse.ArgumentParser) -> None:
    words = (
        "folder of scenes made with render --framed: four in five pictures of the base's own steps are of "
        "those, so that one thing alone comes out whole and in the middle"
    )
    parser.add_argument("--framed", type=Path, help=words)


def _turns(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    words = (
        "whose step it is, again and again in this order; the first control's file carries the trunk; "
        "base: a step without control, and the base learns in all steps, otherwise it is locked"
    )
    choices = (*TURNS, "base")
    parser.add_argument("--turns", nargs="+", choices=choices, default=default, metavar="CONTROL", help=words)


def _add_scenes(commands: argparse._SubParsersAction) -> None:
    sub = _stage(commands, "render", "compose toy-world scenes into --data")
    sub.add_argument("--count", type=int, default=16384, help="scenes (default 16384)")
    sub.add_argument("--first", type=int, default=0, help="seed of the first scene (default 0)")
    sub.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    sub.add_argument("--things", type=int, help="only the first so many things (default all)")
    sub.add_argument("--framed", action="store_true", help="one thing each, in the middle, never mirrored")
    sub.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    sub = _stage(commands, "hints", "make a control's hints of the scenes, with the apps' detectors")
    sub.add_argument("--control", required=True, help="which control")
    sub.add_argument("--count", type=int, default=2048, help="scenes (default 2048)")
    sub.add_argument("--workers", type=int, default=2, help="processes (default 2)")


def _add_autoencoder(commands: argparse._SubParsersAction) -> None:
    _stage(commands, "encoder", "fit the autoencoder in closed form")
    sub = _stage(commands, "latents", "encode the scenes with the fitted encoder")
    sub.add_argument("--count", type=int, help="how many of the scenes (default all)")
    _device(sub)
    sub = _stage(commands, "decoder", "train the decoder on the latents")
    _training(sub, steps=3000, rate=2e-4, batch=8)
    sub.add_argument("--detectors", action="store_true", help="learn what the apps' detectors look at, too")
    sub.add_argument("--adversary", action="store_true", help="learn to be taken for true, too")
    sub.add_argument("--redrawn", action="store_true", help="learn from what redraw drew, too")
    sub = _stage(commands, "redraw", "draw scenes anew with the exported model, for the decoder")
    sub.add_argument("--count", type=int, default=512, help="how many of the scenes (default 512)")
    _ckpts(sub)
    _device(sub)


def _add_base(commands: argparse._SubParsersAction) -> None:
    _stage(commands, "words", "give the things' words a code of what they look like")
    sub = _stage(commands, "base", "train the UNet on latents and captions")
    _training(sub, steps=6000, rate=6e-4, batch=16)
    _crop(sub)
    _framed(sub)
    sub.add_argument("--late", action="store_true", help="more of the noisy time steps, where words decide")


def _add_controls(commands: argparse._SubParsersAction) -> None:
    sub = _stage(commands, "control", "train a ControlNet on the locked base and export it")
    _training(sub, steps=2000, rate=5e-4, batch=16)
    sub.add_argument("--control", default="canny", help="which control (default canny)")
    _crop(sub)
    sub.add_argument("--over", type=Path, help="exported ControlNet whose trunk to take over")
    sub.add_argument("--variant", default="full", choices=CONTROL_VARIANTS, help="network (default full)")
    _ckpts(sub)
    sub = _stage(commands, "controls", "train ControlNets that share one trunk and export them")
    _training(sub, steps=3200, rate=1e-3, batch=24)
    _turns(sub, TURNS)
    _crop(sub)
    _framed(sub)
    _close(sub)
    _ckpts(sub)
    sub = _stage(commands, "feedback", "train a ControlNet by what a detector finds in its drawings")
    _training(sub, steps=600, rate=3e-4, batch=4)
    sub.add_argument("--control", required=True, choices=("mlsd", "openpose", "seg"), help="which control")
    _ckpts(sub)


def _add_naming(commands: argparse._SubParsersAction) -> None:
    words = (
        "train the base, or a control, by whether small networks can name what is drawn; they are trained "
        "first where --runs lacks them"
    )
    sub = _stage(commands, "naming", words)
    _training(sub, steps=600, rate=3e-4, batch=4)
    what = sub.add_mutually_exclusive_group(required=True)
    words = "train the base; folder of scenes made with render --framed, for the drawings without a map"
    what.add_argument("--framed", type=Path, help=words)
    words = "train what this control has of its own, by drawings under its maps; the base stays"
    what.add_argument("--control", choices=TURNS, help=words)
    _ckpts(sub)


def _close(sub: argparse.ArgumentParser) -> None:
    words = (
        "make half of the controls' batches squares of so many pixels, of one of these sides, which show a "
        "thing from near by: no more pixels in all, but more of things"
    )
    sub.add_argument("--close", type=int, nargs="+", default=[], metavar="SIDE", help=words)


def _add_stream(commands: argparse._SubParsersAction) -> None:
    sub = _stage(commands, "stream", "train base and ControlNets on a GPU, on scenes made meanwhile")
    _training(sub, steps=1_000_000, rate=1e-3, batch=768)  # smaller ones wait for Python, not for the GPU
    sub.add_argument("--scenes", type=int, default=65536, help="scenes in all (default 65536)")
    sub.add_argument("--truth", type=int, default=16384, help="scenes with all maps (default 16384)")
    words = "framed scenes beside them, for the base's own steps (default 24576; see render)"
    sub.add_argument("--framed", type=int, default=24576, help=words)
    sub.add_argument("--workers", type=int, default=14, help="processes that make scenes (default 14)")
    _turns(sub, (*TURNS, "base"))
    _close(sub)
    words = "faster steps, after a minute or two for each size of batches"
    sub.add_argument("--compile", action="store_true", help=words)
    sub.add_argument("--export-every", type=float, help="minutes after which to write the files meanwhile")
    sub.add_argument("--start", type=Path, default=CKPTS, help="folder of exported files to go on from")
    _ckpts(sub)


def _add_detector(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("detector", help="train a small detector on the toy world and export it")
    _training(sub, steps=2400, rate=1e-3, batch=8)
    sub.add_argument("--detector", required=True, choices=DETECTORS, help="which detector")
    sub.add_argument("--start", type=Path, help="exported detector that a new run goes on from")
    sub.add_argument("--side", type=int, help="side of all scenes in pixels (default: small ones first)")
    sub.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the runs' checkpoints")
    _ckpts(sub)
    sub.add_argument("--workers", type=int, default=0, help="more processes, to draw scenes (default 0)")


def _add_files(commands: argparse._SubParsersAction) -> None:
    sub = _stage(commands, "unpack", "let encoder, latents and base go on from an exported base file")
    sub.add_argument("--base", type=Path, default=CKPTS / "base.safetensors", help="the file")
    sub = _stage(commands, "export", "write the trained base to --ckpts")
    _ckpts(sub)
    sub = _stage(commands, "carry", "let the controls in --ckpts go on under a base that was trained further")
    sub.add_argument("--ckpts", type=Path, default=CKPTS, help="folder of the controls and their old base")
    sub = commands.add_parser("average", help="write the mean of several exported models to --ckpts")
    sub.add_argument("folders", type=Path, nargs="+", help="each with a base and its controls, of one start")
    sub.add_argument("--weights", type=float, nargs="+", help="how much each counts (default alike)")
    _ckpts(sub)
    sub = commands.add_parser("split", help="write a file in parts of at most 15 MiB, to carry it elsewhere")
    sub.add_argument("file", type=Path, help="such as a run's checkpoint.pt")
    sub.add_argument("folder", type=Path, help="where the parts go")
    sub = commands.add_parser("join", help="put the parts together again")
    sub.add_argument("folder", type=Path, help="where the parts are")
    sub.add_argument("file", type=Path, help="what they become; its name is the parts'")


def _add_measures(commands: argparse._SubParsersAction) -> None:
    sub = commands.add_parser("classifier", help="train the judge of words, which evaluate asks")
    sub.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the runs' checkpoints")
    sub.add_argument("--minutes", type=float, help="end this run after so long; the next one resumes")
    _device(sub)
    sub = commands.add_parser("evaluate", help="measure the bundled demo model on held-out scenes")
    sub.add_argument("--count", type=int, default=256, help="scenes (default 256)")
    sub.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    sub.add_argument(
        "--batch", type=int, default=1, help="pictures drawn at once: 32 suits a GPU (default 1)"
    )
    sub.add_argument("--sheet", type=Path, help="PNG of the first scenes: scene, hint, result")
    sub.add_argument("--runs", type=Path, default=RUNS, help="folder that holds the judge of words")
    sub.add_argument("--control", help="measure only how well this control is obeyed")
    sub.add_argument("--detector", help="measure only this detector: depth, normal, pose or segmentation")
