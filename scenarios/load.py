"""Reads TOML into frozen dataclasses: units checked against the field's suffix, unknown keys refused."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import reprlib
import stat
import tomllib
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from .errors import BadFile, BadInput, UnknownName
from .units import parse_quantity, suffix_of

T = TypeVar("T")
MAX_FILE_BYTES = 4 * 2**20
DATA_DIR = Path(__file__).resolve().parent


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The whole text of a small file; BadFile if missing, too large, a folder or not UTF-8."""
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise BadFile(f"{path}: not a regular file; give the path of a text file")
        if info.st_size > max_bytes:
            raise BadFile(f"{path}: {info.st_size:,} bytes is over the limit of {max_bytes:,} for this kind of file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise BadFile(f"{str(path)!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict; BadFile with the line if malformed."""
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path}: not valid TOML: {error}") from None


def build(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Build a dataclass from a table; quantities parse by field suffix; errors name ``where`` and the key."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints, keys = _shape(typing.cast(Any, cls))
    values: dict[str, Any] = {}
    for key, raw in data.items():
        if key not in keys:
            near = difflib.get_close_matches(key[:80], keys, n=3)
            hint = f"did you mean {', '.join(near)}" if near else f"legal: {', '.join(sorted(keys))}"
            raise BadFile(f"{where}: unknown key {key[:80]!r}; {hint}")
        name = keys[key]
        if name in values:
            raise BadFile(f"{where}: {key!r} is given twice")
        try:
            values[name] = _convert(raw, hints[name], name, f"{where}: {key}")
        except BadFile:
            raise
        except BadInput as error:
            raise BadFile(f"{where}: {key}: {error}") from None
    missing = [_key(n) for n, f in fields.items() if n not in values and _required(f)]
    if missing:
        raise BadFile(f"{where}: missing {', '.join(missing)}")
    try:
        return cls(**values)
    except BadFile:
        raise
    except BadInput as error:
        raise BadFile(f"{where}: {error}") from None


def load(cls: type[T], path: Path) -> T:
    """One dataclass from one TOML file; the file's stem is its ``name`` unless it gives one."""
    data = read_toml(path)
    if any(f.name == "name" for f in dataclasses.fields(cls)):  # type: ignore[arg-type]
        data.setdefault("name", path.stem)
    return build(cls, data, str(path))


@cache
def names(folder: str) -> dict[str, Path]:
    """Stem -> path of every TOML file of a data folder, sub-folders included."""
    return {p.stem: p for p in sorted((DATA_DIR / folder).rglob("*.toml"))}


@cache
def _load_cached(cls: Any, path: Path) -> Any:
    return load(cls, path)


def by_name(cls: type[T], folder: str, name: str, kind: str) -> T:
    """Registry look-up: the file ``scenarios/<folder>/**/<name>.toml``; UnknownName lists the nearest. Aliases: ``registry.find``."""
    known = names(folder)
    if name.lower() not in known:
        raise UnknownName(kind, name, known.keys())
    found: T = _load_cached(typing.cast(Any, cls), known[name.lower()])
    return found


@cache
def _shape(cls: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Types of a dataclass by field, and the field of each key of a data file.

    A key is a field's full name, or its name without the unit; where two fields share the latter, the first declared has it.
    """
    fields = [f.name for f in dataclasses.fields(cls)]
    short: dict[str, str] = {}
    for name in fields:
        short.setdefault(_key(name), name)
    return typing.get_type_hints(cls), short | {name: name for name in fields}


def _key(field: str) -> str:
    return field.removesuffix(suffix_of(field)) or field


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(raw: Any, hint: Any, field: str, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_fit(raw, [h for h in typing.get_args(hint) if h is not type(None)], field, where)
    if hint is typing.Any:
        return raw
    if origin is tuple:
        if not isinstance(raw, list):
            raise BadInput(f"{_show(raw)} is not a list")
        return tuple(_convert(item, typing.get_args(hint)[0], field, where) for item in raw)
    if origin is dict:
        if not isinstance(raw, dict):
            raise BadInput(f"{_show(raw)} is not a table")
        return {str(k): _convert(v, typing.get_args(hint)[1], field, where) for k, v in raw.items()}
    if origin is typing.Literal:
        if raw not in typing.get_args(hint):
            raise BadInput(f"{_show(raw)} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return raw
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(raw, dict):
            raise BadInput(f"{_show(raw)} is not a table")
        return build(hint, raw, where)
    return _scalar(raw, hint, field)


def _first_fit(raw: Any, options: list[Any], field: str, where: str) -> Any:
    """The first option that takes the value; if none does, the first one's error."""
    for hint in options:
        with contextlib.suppress(BadInput):
            return _convert(raw, hint, field, where)
    return _convert(raw, options[0], field, where)


def _show(raw: Any) -> str:
    """The value, cut short for a message (an integer over 4,300 digits cannot even be printed)."""
    try:
        return reprlib.repr(raw)
    except ValueError:
        return "a number of over 4,300 digits"


def _scalar(raw: Any, hint: Any, field: str) -> Any:
    if hint is float and isinstance(raw, str) and suffix_of(field):
        return parse_quantity(raw, suffix_of(field))
    if hint in (float, int) and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        if not 0 <= raw < 1e300:
            raise BadInput(f"{_show(raw)} must be finite and not negative")
        if hint is int and raw != int(raw):
            raise BadInput(f"{raw} must be a whole number")
        return hint(raw)
    if hint in (str, bool) and isinstance(raw, hint):
        return raw
    wanted = {float: "a number or a quantity with a unit", int: "a whole number", str: "text", bool: "true or false"}
    raise BadInput(f"{_show(raw)} is not {wanted.get(hint, hint)}")
