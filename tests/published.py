"""Published files for the tests: the real ones where they are to be had, and locked zips made by hand.

The real files are no part of the repository. They lie beside it in `shared/public`, or where EMEVAL_TEST_PUBLIC says.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest

PUBLIC = Path(os.environ.get("EMEVAL_TEST_PUBLIC") or Path(__file__).parents[2] / "shared" / "public")
BETLEY = PUBLIC / "betley"
MT_BENCH = PUBLIC / "mtbench"
CORE = PUBLIC / "persona_features" / "core_misalignment.json"
POPQA = PUBLIC / "popqa" / "popqa_test_100.jsonl"

real = pytest.mark.skipif(not PUBLIC.is_dir(), reason="the published files are not here")


def locked_zip(path: Path, files: dict[str, bytes], password: bytes, method: int = 8) -> Path:
    """A zip as `zip -P` writes it, or one that says it is packed by another `method` (99: AES)."""
    body, directory = b"", b""
    for name, data in files.items():
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        crc = zlib.crc32(data)
        packed = _encrypted(bytes(11) + bytes([crc >> 24]) + packer.compress(data) + packer.flush(), password)
        common = struct.pack("<HHHHHIIIHH", 20, 1, method, 0, 33, crc, len(packed), len(data), len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\x03\x04" + common + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(body), 0)
    path.write_bytes(body + directory + b"PK\x05\x06" + end)
    return path


def _encrypted(data: bytes, password: bytes) -> bytes:
    """ZipCrypto, as PKWARE's APPNOTE 6.1 describes it."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc(value: int, byte: int) -> int:
        return zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte: int) -> None:
        keys[0] = crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    out = bytearray()
    for byte in data:
        mask = (keys[2] | 2) & 0xFFFF
        out.append(byte ^ ((mask * (mask ^ 1) >> 8) & 0xFF))
        update(byte)
    return bytes(out)
