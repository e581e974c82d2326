"""Serve a page on loopback for a test, and stop it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apps.page.model import Model, Pipeline
from apps.spec import Page


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def served(
    pages: Sequence[Page], model: Model | Pipeline | None, folder: Path, auth: tuple[str, str] | None = None
) -> Iterator[str]:
    """Yield the address of a page whose files lie in ``folder``."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    from apps.ui import build, serve

    page = build(pages, model)
    try:
        yield serve(page, host="127.0.0.1", port=free_port(), auth=auth, quiet=True)
    finally:
        page.close()
        if before is None:
            os.environ.pop("GRADIO_TEMP_DIR")
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
