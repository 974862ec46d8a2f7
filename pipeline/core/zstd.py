"""Zstandard: Python has it from 3.14 on, and the package backports.zstd is the same for those before."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError, compress, open
else:
    from backports.zstd import ZstdDecompressor, ZstdError, compress, open

__all__ = ["ZstdDecompressor", "ZstdError", "compress", "open"]
