"""A hub on this computer: answers HEAD and GET of ``/OWNER/NAME/resolve/main/FILE`` as the real one does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has and does; ``ranges`` are the ``Range`` headers of the files' GETs ("" for none)."""

    files: dict[str, bytes] = field(default_factory=dict)
    claimed_sha256: dict[str, str] = field(default_factory=dict)
    cut_at: list[int] = field(default_factory=list)  # one for each GET to come: close after so many bytes
    fail_after_cuts: bool = False  # then answer 500
    gated: bool = False
    ranges: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(with_body=False)

    def do_GET(self) -> None:  # noqa: N802
        if "/resolve/" in self.path:  # the library also asks for the list of a repository's files
            self.hub.ranges.append(self.headers.get("Range", ""))
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub = self.hub
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.gated:
            return self._refuse(403, "GatedRepo")
        content = hub.files.get(self.path)
        if content is None:
            repo = self.path.split("/resolve/")[0]
            known = any(path.startswith(repo + "/") for path in hub.files)
            return self._refuse(404, "EntryNotFound" if known else "RepoNotFound")
        if with_body and hub.fail_after_cuts and not hub.cut_at:
            return self._refuse(500, "")
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        sha256 = hub.claimed_sha256.get(self.path) or hashlib.sha256(content).hexdigest()
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{sha256}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Linked-Etag", f'"{sha256}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        if hub.cut_at:
            self.wfile.write(content[start : hub.cut_at.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
