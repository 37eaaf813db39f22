"""Values of Arrow columns -> values that JSON has a word for.

Dates and times become ISO text, decimals and durations text, bytes that are UTF-8 text, NaN null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tunewright.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Plain = Callable[[Any], Any]


class Columns:
    """How the columns of a schema become plain.

    Args:
        path: of the file, for messages.
    Raises:
        DataError: two columns have one name, or one is of a type that JSON has no form for.
    """

    def __init__(self, path: str, schema: pa.Schema):
        self.names: list[str] = list(schema.names)
        twice = [name for name in self.names if self.names.count(name) > 1]
        if twice:
            raise DataError(f"{path}: two columns are named `{twice[0]}`")
        try:
            self._plain = [_plain(field.type) for field in schema]
        except TypeError as error:
            bad = next(field for field in schema if not _is_plain(field.type))
            raise DataError(
                f"{path}: column `{bad.name}` is of type {error}, which JSON has no form for; leave it out"
            ) from None

    def rows(self, batch: pa.RecordBatch) -> list[tuple[dict[str, Any], str]]:
        """Each row, and what is wrong with it: empty if nothing is."""
        try:
            values = [
                _each(plain, column.to_pylist())
                for plain, column in zip(self._plain, batch.columns, strict=True)
            ]
        except (ValueError, ArithmeticError):  # of one value; the others are rows all the same
            return [self._row(batch.slice(at, 1)) for at in range(batch.num_rows)]
        if not values:
            return [({}, "")] * batch.num_rows
        return [(dict(zip(self.names, row, strict=True)), "") for row in zip(*values, strict=True)]

    def _row(self, batch: pa.RecordBatch) -> tuple[dict[str, Any], str]:
        row, problem = {}, ""
        for name, plain, column in zip(self.names, self._plain, batch.columns, strict=True):
            try:
                (row[name],) = _each(plain, column.to_pylist())
            except (ValueError, ArithmeticError) as error:
                reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                problem = problem or f"column `{name}`: {reason}"
        return row, problem


def _each(plain: Plain | None, values: list[Any]) -> list[Any]:
    return values if plain is None else [None if value is None else plain(value) for value in values]


def _is_plain(kind: pa.DataType) -> bool:
    try:
        _plain(kind)
    except TypeError:
        return False
    return True


def _plain(kind: pa.DataType) -> Plain | None:
    """What makes a value of this type plain; None where it is already.

    Raises:
        TypeError: there is no way.
    """
    import pyarrow.types as types

    inner: Sequence[Plain | None]
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_null(kind) or _is_text(kind):
        return None
    if types.is_floating(kind):
        return _number
    if types.is_temporal(kind) and not types.is_interval(kind):
        return str if types.is_duration(kind) else _iso
    if types.is_decimal(kind):
        return str
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return _text
    if types.is_fixed_size_binary(kind):
        return _text
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _plain(kind.value_type)
    if types.is_map(kind):
        return _map(_plain(kind.key_type), _plain(kind.item_type), _is_text(kind.key_type))
    if types.is_struct(kind):
        inner = [_plain(field.type) for field in kind]
        return _struct({field.name: plain for field, plain in zip(kind, inner, strict=True)})
    if any(is_list(kind) for is_list in _list_checks()):
        of = _plain(kind.value_type)
        return None if of is None else lambda values: _each(of, values)
    raise TypeError(str(kind))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _list_checks() -> list[Callable[[pa.DataType], bool]]:
    import pyarrow.types as types

    return [
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    ]


def _number(value: float) -> float | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise ValueError("Infinity is not JSON")
    return float(value)


def _iso(value: Any) -> str:
    return str(value.isoformat())


def _text(value: bytes) -> str:
    return value.decode()


def _struct(fields: dict[str, Plain | None]) -> Plain | None:
    plain = {name: change for name, change in fields.items() if change is not None}
    if not plain:
        return None

    def change(value: dict[str, Any]) -> dict[str, Any]:
        changed = {name: None if value[name] is None else make(value[name]) for name, make in plain.items()}
        return {**value, **changed}

    return change


def _map(key: Plain | None, item: Plain | None, named: bool) -> Plain:
    def change(pairs: list[tuple[Any, Any]]) -> Any:
        keys = _each(key, [pair[0] for pair in pairs])
        items = _each(item, [pair[1] for pair in pairs])
        return (
            dict(zip(keys, items, strict=True)) if named else [list(p) for p in zip(keys, items, strict=True)]
        )

    return change
