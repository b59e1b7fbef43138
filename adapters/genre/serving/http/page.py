"""The page at `/`: a folder of files, read once.

Owns: the list of files, their types. Ignores: what they show. Nothing is looked up by a path that a caller sends.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi import Request as Http
from fastapi import Response as Reply

FOLDER = Path(__file__).parent.parent / "page"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """A file of the page."""

    body: bytes
    kind: str
    tag: str


def read_files(folder: Path = FOLDER) -> dict[str, File]:
    """The folder's files by their paths under `/`; `index.html` is `/`, any other `NAME.html` is `/NAME`."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path.suffix in TYPES:
            body = path.read_bytes()
            name = "/" + path.relative_to(folder).as_posix()
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            shown = "/" if name == "/index.html" else name.removesuffix(".html")
            found[shown] = File(body, TYPES[path.suffix], tag)
    return found


def mount(app: FastAPI, files: dict[str, File]) -> None:
    """Add a route for each file; a browser that has the file already gets 304."""
    for name, file in files.items():
        app.add_api_route(name, _sender(file), methods=["GET"], include_in_schema=False)


def _sender(file: File):  # type: ignore[no-untyped-def]
    async def send(http: Http) -> Reply:
        head = {"ETag": file.tag, "Cache-Control": "no-cache"}
        if http.headers.get("if-none-match") == file.tag:
            return Reply(status_code=304, headers=head)
        return Reply(file.body, media_type=file.kind, headers=head)

    return send
