"""Headers of a response: None for one that is missing or malformed."""

from __future__ import annotations

import email.utils
import re
from contextlib import suppress
from datetime import UTC, datetime

import httpx


def length(response: httpx.Response) -> int | None:
    """Return Content-Length in bytes."""
    return _number(response.headers.get("Content-Length", ""))


def content_range(response: httpx.Response) -> tuple[int, int | None] | None:
    """Return the first byte of a 206, and the size of the whole file if the server knows it (RFC 9110 §14.4)."""
    match = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "").strip()
    )
    return (int(match[1]), _number(match[2])) if match else None


def strong_etag(response: httpx.Response) -> str | None:
    """Return an ETag that promises identical bytes (RFC 9110 §8.8.1); a weak one does not."""
    text = response.headers.get("ETag", "").strip()
    return text if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', text) else None


def compression(response: httpx.Response) -> str | None:
    """Return the compression of a body, although only `identity` was requested."""
    encoding: str = response.headers.get("Content-Encoding", "").strip().lower()
    return None if encoding in ("", "identity") else encoding


def modified(response: httpx.Response) -> datetime | None:
    """Return Last-Modified (RFC 9110 §8.8.2): of a vendor's file, when it was uploaded."""
    return _date(response.headers.get("Last-Modified", ""))


def retry_after(response: httpx.Response) -> float | None:
    """Return Retry-After in seconds from now; it is a number or a date (RFC 9110 §10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    date = _date(text)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0) if date else None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,18}", text.strip()) else None


def _date(text: str) -> datetime | None:
    with suppress(ValueError, TypeError, OverflowError):
        date = email.utils.parsedate_to_datetime(text)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    return None
