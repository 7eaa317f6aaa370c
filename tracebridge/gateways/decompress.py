"""Undo a body's content encoding, in a copy of it."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any

# What a copy may grow to; a few kilobytes can be made to decompress to gigabytes.
OUTPUT_LIMIT = 64 * 1024 * 1024
# Of what is compressed; four bytes of zstd may stand for 128 kB.
_PIECE = 256


class CannotDecompressError(Exception):
    """No module for this encoding is there, the data is damaged, or it grows beyond all use."""


class Decompressor:
    """Decompress a body as it comes."""

    def __init__(self, content_encoding: str) -> None:
        # Encodings were applied in the order in which they are named.
        names = [name.strip().lower() for name in content_encoding.split(",")]
        self._stages = [_stage(name) for name in reversed(names) if name not in ("", "identity")]
        self._output_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return what *data* adds. Raise CannotDecompressError."""
        for stage in self._stages:
            try:
                data = stage(data)
            # Each module has an error of its own, not all of them are public.
            except Exception as error:
                raise CannotDecompressError(str(error)) from error
        self._output_bytes += len(data)
        if self._stages and self._output_bytes > OUTPUT_LIMIT:
            raise CannotDecompressError(f"more than {OUTPUT_LIMIT} bytes")
        return data


def decompress(data: bytes, content_encoding: str) -> bytes:
    """Return a whole body decompressed. Raise CannotDecompressError."""
    return Decompressor(content_encoding).feed(data)


def _stage(name: str) -> Callable[[bytes], bytes]:
    if name in ("gzip", "x-gzip"):
        return _limited(zlib.decompressobj(wbits=31))
    if name == "deflate":
        return _Deflate().feed
    if name == "zstd":
        # In the standard library from Python 3.14 on.
        standard = _optional_module("compression.zstd") or _optional_module("backports.zstd")
        if standard is not None:
            return _limited(standard.ZstdDecompressor())
        module = _optional_module("zstandard")
        if module is not None:
            return _bound(module.ZstdDecompressor().decompressobj().decompress)
    if name == "br":
        module = _optional_module("brotli") or _optional_module("brotlicffi")
        if module is not None:
            decompressor = module.Decompressor()
            return _bound(getattr(decompressor, "decompress", None) or decompressor.process)
    raise CannotDecompressError(f"no module here decompresses {name[:40]!r}")


class _Deflate:
    """What is called deflate has a zlib header by the standard and often none in practice."""

    def __init__(self) -> None:
        self._feed: Callable[[bytes], bytes] | None = None

    def feed(self, data: bytes) -> bytes:
        if self._feed is None:
            if not data:
                return b""
            has_header = data[0] & 0x0F == zlib.DEFLATED
            self._feed = _limited(zlib.decompressobj(wbits=15 if has_header else -15))
        return self._feed(data)


def _limited(decompressor: Any) -> Callable[[bytes], bytes]:
    def feed(data: bytes) -> bytes:
        if decompressor.eof:
            return b""
        output: bytes = decompressor.decompress(data, OUTPUT_LIMIT)
        if len(output) == OUTPUT_LIMIT:
            raise CannotDecompressError(f"more than {OUTPUT_LIMIT} bytes")
        return output

    return feed


def _bound(function: Any) -> Callable[[bytes], bytes]:
    def feed(data: bytes) -> bytes:
        # These know no limit of their own: little by little, so that it shows in time.
        pieces: list[bytes] = []
        size = 0
        for start in range(0, len(data), _PIECE):
            pieces.append(function(data[start : start + _PIECE]))
            size += len(pieces[-1])
            if size > OUTPUT_LIMIT:
                raise CannotDecompressError(f"more than {OUTPUT_LIMIT} bytes")
        return b"".join(pieces)

    return feed


def _optional_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
