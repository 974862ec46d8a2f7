"""Zstandard: in Python from 3.14 on; the package backports.zstd is the same for older ones."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError, compress, open
else:
    from backports.zstd import ZstdDecompressor, ZstdError, compress, open

__all__ = ["ZstdDecompressor", "ZstdError", "compress", "open"]
