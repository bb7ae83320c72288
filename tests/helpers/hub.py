"""A server that answers as the Hub does for one data set of Parquet files, and fails on purpose."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .serving import in_background

NAME = "someone/pictures"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder under `/datasets/someone/pictures/resolve/…` and what the client asks about them.

    Args:
        folder: what is served.
        trouble: number of a request for data, counted from 1 → "429", "503", "cut" (the connection breaks amid the
            answer) or None. Called for each.
    """

    def __init__(self, folder: Path, trouble=lambda number: None) -> None:
        self.folder, self.trouble = folder, trouble
        self.requests: Counter[str] = Counter()
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlparse(request.path).path)
        if path.startswith(f"/datasets/{NAME}/resolve/"):
            self._file(request, path.split("/", 6)[6])
        elif path.startswith(f"/api/datasets/{NAME}/tree/"):
            self._json(request, [self._entry(f) for f in sorted(self.folder.glob("*.parquet"))])
        elif path.startswith(f"/api/datasets/{NAME}/paths-info/"):
            wanted = urllib.parse.parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            self._json(request, [self._entry(self.folder / w) for w in wanted if (self.folder / w).is_file()])
        elif path.startswith(f"/api/datasets/{NAME}"):
            files = [{"rfilename": f.name} for f in sorted(self.folder.glob("*.parquet"))]
            self._json(request, {"id": NAME, "sha": _COMMIT, "private": False, "gated": False, "disabled": False,
                                 "tags": [], "downloads": 0, "likes": 0, "siblings": files})  # fmt: skip
        else:
            self._plain(request, 404, b"", {"X-Error-Code": "EntryNotFound"})

    def _entry(self, file: Path) -> dict:
        return {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _COMMIT}

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        file = self.folder / name
        if not file.is_file():
            self._plain(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_COMMIT}"', "X-Repo-Commit": _COMMIT, "Accept-Ranges": "bytes"}
        data = file.read_bytes()
        if request.command == "HEAD":
            self._plain(request, 200, data, headers)
            return
        with self._lock:
            self.requests["data"] += 1
            trouble = self.trouble(self.requests["data"])
            self.requests[trouble or "answered"] += 1
        if trouble in ("429", "503"):
            self._plain(request, int(trouble), b"busy", {"Retry-After": "0"})
            return
        status = 200
        if request.headers.get("Range"):
            first, _, last = request.headers["Range"].removeprefix("bytes=").partition("-")
            whole = len(data)
            data = data[int(first) : int(last or whole - 1) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{whole}"
            status = 206
        self._plain(request, status, data, headers, cut=trouble == "cut")

    def _json(self, request: BaseHTTPRequestHandler, value) -> None:
        self._plain(request, 200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _plain(
        self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict, cut: bool = False
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()


@contextmanager
def serving(folder: Path, trouble=lambda number: None) -> Iterator[Hub]:
    hub = Hub(folder, trouble)
    with in_background(hub.server):
        yield hub
