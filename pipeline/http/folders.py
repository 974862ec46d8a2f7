"""`file://localhost/…` URLs for the HTTP client, so that a mirror can be a folder.

Responses are those of a static file server: 200 for a file, 404 for a missing one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import httpx

_CHUNK = 1 << 20


class Folders(httpx.BaseTransport):
    """httpx's transport for the scheme `file`."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response to GET or HEAD; the path is that of the URL, percent-decoded."""
        path = Path(unquote(request.url.raw_path.decode("ascii").partition("?")[0]))
        if request.url.host != "localhost" or not path.is_file():
            return httpx.Response(404, request=request)
        headers = {"Content-Length": str(path.stat().st_size)}
        if request.method == "HEAD":
            return httpx.Response(200, headers=headers, request=request)
        return httpx.Response(200, headers=headers, content=_chunks(path), request=request)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
