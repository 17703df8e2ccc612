"""A server on this machine that misbehaves in the ways that real ones do."""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from innervision.data.download import Remote


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes) with ranges, and does what `faults` say, one for each request while there are any.

    | fault | what happens |
    |---|---|
    | `cut:N` | the connection ends after N bytes of what was asked for |
    | `no range` | the whole file comes, whatever was asked for |
    | `no range, cut:N` | both |
    | `slow:N` | N bytes at a time, with a pause after each |
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.redirects: dict[str, str] = {}
        """From where to where requests are sent on, as the Hub does with large files."""
        self.etags: dict[str, str] = {}
        """Checksums by which files are announced, where they are not their own."""
        self.asked: list[tuple[str, str | None]] = []
        """The path and the Range of every request, "head" for one that asks for no content."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, path: str, content: bytes) -> Remote:
        """Serve a file, and say what it should be."""
        self.files[path] = content
        return Remote(f"{self.url}{path}", len(content), hashlib.sha256(content).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        """Answer what the Hub's library asks before it fetches a file."""
        self.server.asked.append((self.path, "head"))
        place = self.server.redirects.get(self.path, self.path)
        content = self.server.files.get(place)
        if content is None:
            self.send_error(404)
            return
        linked = "" if place == self.path else "X-Linked-"
        self.send_response(302 if linked else 200)
        if linked:
            self.send_header("Location", place)
        self.send_header(f"{linked}Size" if linked else "Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "1" * 40)
        etag = self.server.etags.get(place) or hashlib.sha256(content).hexdigest()
        self.send_header(f"{linked}ETag", f'"{etag}"')
        self.end_headers()

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        content = self.server.files.get(self.path.partition("?")[0])
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if content is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and "no range" not in fault else 0
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        number = int(fault.rpartition(":")[2] or 0) if ":" in fault else 0
        if "cut:" in fault:
            body = body[:number]
        step = number if "slow:" in fault else max(1, len(body))
        with suppress(ConnectionError):  # who asked may have gone
            for begin in range(0, len(body), step):
                self.wfile.write(body[begin : begin + step])
                if "slow:" in fault:
                    time.sleep(0.02)


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server while the block runs."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
