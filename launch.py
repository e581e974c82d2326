"""Start the page: ``python launch.py --app canny``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apps import ALL, additions, all_pages, computing, controls_of, find_pages
from apps.additions import Additions
from apps.computing import Computing
from core.request import MAX_BATCH
from core.runtime.garbage import lasting
from core.runtime.quota import compute_within_quota
from core.runtime.waiting import wait_briefly

if TYPE_CHECKING:
    from apps.page.model import Model, Pipeline

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 7860


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    env = os.environ
    names = [*(page.name for page in all_pages()), ALL]
    p = argparse.ArgumentParser(
        prog="launch.py", description="Draw pictures that follow the structure of yours, in the browser."
    )
    p.add_argument(
        "--app",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"What to open, as tabs when there are several: {', '.join(names)}; 1.1 means the apps of "
        "ControlNet 1.1. Without it, all but those.",
    )
    p.add_argument(
        "--model",
        default="auto",
        metavar="auto|demo|sd15|sd21|sd21_768|PATH",
        help="The model that draws: auto takes Stable Diffusion 1.5 when its weights are there, else the "
        "bundled demo model; PATH is a checkpoint or a YAML file.",
    )
    p.add_argument(
        "--device",
        default="auto",
        help="Where to compute: auto, cpu, cuda, cuda:1 or mps; auto takes the fastest.",
    )
    p.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="The numbers to compute with: auto takes the fastest that the device knows by itself.",
    )
    p.add_argument(
        "--host",
        default=env.get("GRADIO_SERVER_NAME", DEFAULT_HOST),
        help="The address to listen on: 127.0.0.1 serves this machine only, 0.0.0.0 its network too.",
    )
    p.add_argument(
        "--port",
        type=int,
        default=int(env.get("GRADIO_SERVER_PORT", DEFAULT_PORT)),
        help="The port to listen on; it must be free.",
    )
    p.add_argument("--share", action="store_true", help="Also open a public address; who has it can draw.")
    p.add_argument("--auth", metavar="USER:PASSWORD", help="Ask visitors for this name and this password.")
    p.add_argument(
        "--low-vram",
        action="store_true",
        help="Keep on the GPU only the part that computes and, without one, weights as small as they come: "
        "slower, but needs less memory.",
    )
    p.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="Draw up to so many pictures of visitors who wait as one batch; 1 draws each by itself. Without "
        "it, 4 on a CPU, 8 on a GPU, 1 with --low-vram.",
    )
    p.add_argument(
        "--clip-skip",
        type=int,
        metavar="N",
        help="Read the text encoder's layer N from the end: 1 is the last, 2 what many models ask for. "
        "Without it, the model's own.",
    )
    p.add_argument(
        "--embeddings",
        type=Path,
        metavar="DIR",
        help="Where the textual-inversion files are, used by writing their names; else ckpts/embeddings.",
    )
    additions.add_options(p)
    computing.add_options(p)
    p.add_argument("--list", action="store_true", help="List the apps and stop.")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    cli = parser()
    args = cli.parse_args(arguments)
    wait_briefly()
    compute_within_quota()
    if args.list:
        for page in all_pages():
            also = f"  (also {', '.join(page.aliases)})" if page.aliases else ""
            print(f"{page.name:20} {page.title}{also}")
        return 0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio's own calls to itself
    user, colon, password = (args.auth or "").partition(":")
    if args.auth and not (user and colon and password):
        cli.error("--auth takes USER:PASSWORD, with a colon between them.")
    if args.clip_skip is not None and args.clip_skip < 1:
        cli.error(f"--clip-skip is {args.clip_skip}: give a whole number from 1.")
    if args.max_batch is not None and not 1 <= args.max_batch <= MAX_BATCH:
        cli.error(f"--max-batch is {args.max_batch}: give a whole number from 1 to {MAX_BATCH}.")
    if args.embeddings is not None and not args.embeddings.is_dir():
        cli.error(f"--embeddings is {args.embeddings}: there is no such folder.")
    try:
        pages = find_pages(args.app)
        controls = controls_of(pages)
        model = _model(args, controls) if controls else None
        _place_detectors(args)
    except ValueError as error:
        cli.error(str(error))
    auth = (user, password) if args.auth else None
    with lasting():
        from apps.ui import build, serve

        blocks = build(pages, model)
        try:
            serve(blocks, host=args.host, port=args.port, share=args.share, auth=auth)
        except OSError as error:
            place = f"{args.host}:{args.port}"
            cli.exit(1, f"The page cannot be served at {place} ({error}): give another --port.\n")
    if model is not None:
        model.start()  # after the page is up, so that it answers while the weights load
    with contextlib.suppress(KeyboardInterrupt):
        blocks.block_thread()
    return 0


def _model(args: argparse.Namespace, controls: Sequence[str]) -> Model:
    """Say which model draws; nothing is loaded yet."""
    from apps.page.model import Model, choose, describe, runs_at_once

    max_batch = 1 if args.low_vram and args.max_batch is None else args.max_batch
    added, how = Additions.read(args), Computing.read(args)
    name = choose(args.model, controls)
    title, resolution, cfg_scale = describe(name)

    def load() -> Pipeline:
        from core import Batcher, load_pipeline
        from core.runtime.batcher import default_max_batch

        pipeline = load_pipeline(
            name,
            device=args.device,
            dtype=args.dtype,
            low_vram=args.low_vram,
            clip_skip=args.clip_skip,
            embeddings=args.embeddings,
            loras=added.loras,
            vae=added.vae,
            transfer_from=added.transfer_from,
            parameterization=added.parameterization,
            vae_dtype=how.vae_dtype,
            compile=how.compile,
            graphs=how.graphs,
        )
        # Also for one picture at a time: it draws in a thread that ends, see core/runtime/threads.py.
        return Batcher(pipeline, max_batch or default_max_batch(pipeline.device))

    return Model(name, title, resolution, load, cfg_scale, runs_at_once(max_batch))


def _place_detectors(args: argparse.Namespace) -> None:
    """Let the detectors compute where the model does. Left alone they choose for themselves, and later."""
    if (args.device, args.dtype) != ("auto", "auto"):
        from annotators import networks

        networks.configure(device=args.device, dtype=args.dtype)


if __name__ == "__main__":
    sys.exit(main())
