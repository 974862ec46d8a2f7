"""How many bytes of an ELF file `strip` would take away. Source: elf(5)."""

from __future__ import annotations

import struct

_STRIPPED = (".symtab", ".strtab", ".debug", ".zdebug", ".stab")


def removable(data: bytes) -> int | None:
    """Bytes of its symbol tables and debug information; None when it is no 64-bit little-endian ELF file."""
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        return None
    (offset,) = struct.unpack_from("<Q", data, 40)
    entry, count, names_at = struct.unpack_from("<HHH", data, 58)
    if not count or offset + entry * count > len(data) or names_at >= count:
        return 0
    sections = [struct.unpack_from("<IIQQQQ", data, offset + entry * number) for number in range(count)]
    names = sections[names_at][4]
    total = 0
    for name, kind, _, _, _, length in sections:
        end = data.find(b"\0", names + name)
        if kind != 8 and data[names + name : end].decode("ascii", "replace").startswith(_STRIPPED):  # 8: no bytes
            total += length
    return total
