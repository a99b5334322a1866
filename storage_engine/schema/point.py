r"""Point: one row of plain values as bytes, for a lookup of one key. No Arrow on the way.

Pure. A packed row, little endian: u64 bit i set = value i is null; the values one after the other, of a text or bytes its length (u32),
of a null 0; then the bytes of the texts. Numbers, dates and times travel as Arrow stores them.
Holds: decode(encode(values)) == values; any other bytes are MalformedMessage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

import pyarrow as pa
from pyarrow import types

from storage_engine.errors import MalformedMessage
from storage_engine.schema.descriptor import TableDescriptor

LongWay: TypeAlias = Literal["long way"]
LONG_WAY: Final[LongWay] = "long way"
"""Answered instead of a row where packed rows do not do: ask for a table."""

COLUMNS_MAX: Final = 64
_TEXT, _BYTES = "s", "y"


class RowShape:
    """The columns of packed rows. `codes`: one letter per column, equal at both ends exactly when the rows are laid out alike."""

    def __init__(self, kinds: Sequence[pa.DataType]) -> None:
        """Every kind must have a code: see of()."""
        self.codes = "".join(_code(kind) or "?" for kind in kinds)
        assert "?" not in self.codes, "of() says which kinds are possible"
        self._struct = struct.Struct("<Q" + "".join("I" if code in "sy" else code for code in self.codes))
        self._texts = [(i, code == _TEXT) for i, code in enumerate(self.codes) if code in "sy"]
        self._converted = [(i, _converter(kind)) for i, kind in enumerate(kinds) if _is_time(kind)]

    @classmethod
    def of(cls, kinds: Sequence[pa.DataType]) -> RowShape | None:
        """The shape of rows of these types; None when a type has no code or there are too many."""
        return cls(kinds) if len(kinds) <= COLUMNS_MAX and all(_code(kind) for kind in kinds) else None

    def encode(self, values: Sequence[Any]) -> bytes:
        """Stored values as bytes: numbers as they are stored, texts and bytes as bytes, None for null.

        Errors: struct.error when a value is none of its column.

        >>> shape = RowShape([pa.int32(), pa.string()])
        >>> shape.decode(shape.encode([7, b"tea"]))
        [7, 'tea']
        """
        fixed = list(values)
        nulls = 0
        if None in fixed:
            for i, value in enumerate(fixed):
                if value is None:
                    nulls |= 1 << i
                    fixed[i] = 0
        texts = []
        for i, _ in self._texts:
            if not nulls >> i & 1:
                texts.append(fixed[i])
                fixed[i] = len(fixed[i])
        return self._struct.pack(nulls, *fixed) + b"".join(texts)

    def decode_stored(self, data: bytes | memoryview) -> list[Any]:
        """The inverse of encode(). Errors: MalformedMessage."""
        try:
            nulls, *values = self._struct.unpack_from(data)
        except struct.error as error:
            raise _malformed(str(error)) from error
        at = self._struct.size
        for i, _ in self._texts:
            stop = at + values[i]
            values[i] = bytes(data[at:stop])
            at = stop
        if at != len(data):
            raise _malformed(f"{len(data)} bytes, not {at}")
        if nulls:
            if nulls >> len(values):
                raise _malformed("a null has no column")
            for i in range(len(values)):
                if nulls >> i & 1:
                    values[i] = None
        return values

    def decode(self, data: bytes | memoryview) -> list[Any]:
        """As decode_stored(), in the values that Arrow's to_pylist() has. Errors: MalformedMessage."""
        return self.presented(self.decode_stored(data))

    def presented(self, values: list[Any]) -> list[Any]:
        """Stored values as to_pylist() has them; changes the list. Errors: MalformedMessage for a text that is not UTF-8."""
        try:
            for i, is_text in self._texts:
                if is_text and values[i] is not None:
                    values[i] = values[i].decode()
            for i, convert in self._converted:
                if values[i] is not None:
                    values[i] = convert(values[i])
        except (UnicodeDecodeError, OverflowError, ValueError, pa.ArrowException) as error:
            raise _malformed(str(error)) from error
        return values


def _code(kind: pa.DataType) -> str:
    """The letter of a type: of struct for what has a fixed width, s text, y bytes; "" for a type that packed rows do not carry."""
    if types.is_string(kind):
        return _TEXT
    if types.is_binary(kind):
        return _BYTES
    if types.is_signed_integer(kind):
        return {8: "b", 16: "h", 32: "i", 64: "q"}[kind.bit_width]
    if types.is_float32(kind) or types.is_float64(kind):
        return "f" if kind.bit_width == 32 else "d"
    return ("i" if kind.bit_width == 32 else "q") if _is_time(kind) else ""


def _is_time(kind: pa.DataType) -> bool:
    return types.is_date32(kind) or types.is_time32(kind) or types.is_timestamp(kind)


def _converter(kind: pa.DataType) -> Callable[[int], Any]:
    return lambda stored: pa.scalar(stored, kind).as_py()


def _malformed(why: str) -> MalformedMessage:
    return MalformedMessage(f"a packed row: {why}", where="wire", next_step="Both ends must be Flashlake, of the same protocol version.")


class PointLookup:
    """Lookups of one key in a table as the caller knows it, in one list of columns (None: all). One object is used again and again."""

    def __init__(self, descriptor: TableDescriptor, columns: Sequence[str] | None) -> None:
        self.names = descriptor.column_names if columns is None else tuple(columns)
        known = all(name in descriptor.column_names for name in self.names)
        kinds = [descriptor.column(name).arrow.type for name in self.names] if known else [pa.null()]
        keys = [descriptor.column(name).arrow.type for name in descriptor.primary_key]
        self.key_names = descriptor.primary_key
        self.keys = descriptor.key_schema
        self.key_shape, self.row_shape = RowShape.of(keys), RowShape.of(kinds)
        self.codes: tuple[str, str] | None = None
        if keys and not any(_is_time(kind) for kind in keys) and self.key_shape is not None and self.row_shape is not None:
            self.codes = (self.key_shape.codes, self.row_shape.codes)
        self._key_limits = [1 << (8 * struct.calcsize(code) - 1) if code in "bhiq" else 0 for code in (self.codes or ("",))[0]]
        self._key_types = [_PYTHON_TYPES.get(code, ()) for code in self.codes[0]] if self.codes else []

    def stored_key(self, key: Any) -> list[Any] | None:
        """A key (one value, or for several columns a tuple or dict) as stored values; None: only the long way says what it is."""
        if self.codes is None:
            return None
        if isinstance(key, dict):
            key = tuple(key.get(name) for name in self.key_names) if len(key) == len(self.key_names) else ()
        values = list(key) if isinstance(key, tuple) else [key]
        if len(values) != len(self._key_types):
            return None
        for i, (value, kind) in enumerate(zip(values, self._key_types, strict=True)):
            if type(value) is not kind:
                return None
            if kind is str:
                values[i] = value.encode(errors="surrogatepass")  # no stored text has such bytes, and lookup() refuses them
            elif kind is int and not -self._key_limits[i] <= value < self._key_limits[i]:
                return None
        return values

    def packed_key(self, values: list[Any]) -> bytes:
        """What stored_key() gave, as bytes."""
        assert self.key_shape is not None, "stored_key() gave the values"
        return self.key_shape.encode(values)


_PYTHON_TYPES: Final = {"b": int, "h": int, "i": int, "q": int, "s": str, "y": bytes}
