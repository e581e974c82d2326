"""Time the page as a person meets it: until it answers, the first picture, later ones."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.apps.serving import free_port
from tests.bench.memory import model_path, resident

ROOT = Path(__file__).resolve().parents[2]
GIVE_UP_SECONDS = 180.0
POLL_SECONDS = 0.05


class Launched(NamedTuple):
    """A server that answers: its page's address, the seconds it took to answer, and its process's number."""

    url: str
    waited: float
    process: int


@contextlib.contextmanager
def launched(model: str, *more: str) -> Iterator[Launched]:
    """Start ``launch.py --app canny``, with ``more`` words of its command line, and stop it in the end."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "launch.py", "--app", "canny", "--model", model, "--port", str(port), *more]
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"GRADIO_TEMP_DIR": folder}
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
        try:
            while not answers(url):
                if process.poll() is not None or time.perf_counter() - began > GIVE_UP_SECONDS:
                    raise SystemExit(f"The page did not answer: run {' '.join(command)} to see why.")
                time.sleep(POLL_SECONDS)
            yield Launched(url, time.perf_counter() - began, process.pid)
        finally:
            process.terminate()
            process.wait()


def answers(url: str) -> bool:
    """Say whether a GET of ``url`` gives the page."""
    try:
        with urllib.request.urlopen(url, timeout=GIVE_UP_SECONDS) as reply:
            return reply.status == 200 and b"<html" in reply.read(4096)
    except (urllib.error.URLError, ConnectionError):
        return False


def run_page(args: argparse.Namespace) -> None:
    """Print the seconds from the start of the process to the page's answer, several times."""
    with model_path(args.model, args.weights) as model:
        for _ in range(args.rounds):
            with launched(model) as server:
                print(f"page answers after {server.waited:.1f} s", flush=True)


def run_picture(args: argparse.Namespace) -> None:
    """Print the seconds of a picture asked for as soon as the page answers, and of later ones; the memory."""
    from gradio_client import Client, handle_file

    with model_path(args.model, args.weights) as model, launched(model) as server:
        print(f"page answers after {server.waited:.1f} s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            client = Client(server.url, verbose=False, download_files=folder)
            for i in range(args.rounds + 1):
                began = time.perf_counter()
                client.predict(
                    image=handle_file(str(args.image)),
                    prompt="a red car on green grass",
                    resolution=args.pixels,
                    steps=args.steps,
                    num_samples=1,
                    seed=i,
                    api_name="/canny",
                )
                name = "first" if i == 0 else "later"
                print(f"{name} picture: {time.perf_counter() - began:.1f} s", flush=True)
        if Path("/proc").exists():
            now, peak = resident("VmRSS", server.process), resident("VmHWM", server.process)
            print(f"the server's memory: {now:.2f} GB, at most {peak:.2f} GB", flush=True)
