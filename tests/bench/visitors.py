"""Several visitors at once: pictures a minute and how long each waits, for each limit of a batch."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.memory import model_path
from tests.bench.serve import launched


def run(args: argparse.Namespace) -> None:
    """Print a Markdown row for each limit; every visitor asks again as soon as a picture is there."""
    print("| --max-batch | visitors | pictures a minute | a visitor waits, median | longest |")
    print("|---|---|---|---|---|")
    with model_path(args.model, args.weights) as model:
        for limit in args.max_batch:
            with (
                launched(model, "--max-batch", str(limit)) as server,
                tempfile.TemporaryDirectory() as folder,
            ):
                waits, seconds = _visit(server.url, folder, args)
            rate = 60 * len(waits) / seconds
            middle = statistics.median(waits)
            print(
                f"| {limit} | {args.visitors} | {rate:.0f} | {middle:.1f} s | {max(waits):.1f} s |",
                flush=True,
            )


def _visit(url: str, folder: str, args: argparse.Namespace) -> tuple[list[float], float]:
    """Return how long each picture took to come, and all together."""
    from gradio_client import Client

    clients = [Client(url, verbose=False, download_files=folder) for _ in range(args.visitors)]
    _ask(clients[0], args.image, args, 0)  # loads the model
    began = time.perf_counter()
    with ThreadPoolExecutor(len(clients)) as pool:

        def visitor(number: int) -> list[float]:
            seeds = range(number * args.rounds, (number + 1) * args.rounds)
            return [_ask(clients[number], args.image, args, seed) for seed in seeds]

        waits = [wait for waited in pool.map(visitor, range(len(clients))) for wait in waited]
    return waits, time.perf_counter() - began


def _ask(client: Any, image: Path, args: argparse.Namespace, seed: int) -> float:
    from gradio_client import handle_file

    began = time.perf_counter()
    client.predict(
        image=handle_file(str(image)),
        prompt=f"a red car on green grass, number {seed}",
        resolution=args.pixels,
        steps=args.steps,
        num_samples=1,
        seed=seed,
        api_name="/canny",
    )
    return time.perf_counter() - began
