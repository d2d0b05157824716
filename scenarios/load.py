"""Reads TOML into frozen dataclasses: units checked against the field's suffix, unknown keys refused."""

from __future__ import annotations

import dataclasses
import difflib
import math
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
        size = path.stat().st_size
        if size > max_bytes:
            raise BadFile(f"{path}: {size:,} bytes is over the limit of {max_bytes:,} for this kind of file")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadFile(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror or error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict; BadFile with the line if malformed."""
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadFile(f"{path}: not valid TOML: {error}") from None


def build(cls: type[T], data: dict[str, Any], where: str) -> T:
    """Build a dataclass from a table; quantities parse by field suffix; errors name ``where`` and the key."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _hints(cls)
    keys = {_key(name): name for name in fields} | {name: name for name in fields}
    values: dict[str, Any] = {}
    for key, raw in data.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=3)
            raise BadFile(f"{where}: unknown key {key!r}; {'did you mean ' + ', '.join(near) if near else 'legal: ' + ', '.join(sorted(keys))}")
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
def _load_cached(cls: type[T], path: Path) -> T:
    return load(cls, path)


def by_name(cls: type[T], folder: str, name: str, kind: str, aliases: dict[str, str] | None = None) -> T:
    """Registry look-up: the file ``scenarios/<folder>/**/<name>.toml``, aliases first; UnknownName lists the nearest."""
    known = names(folder)
    key = (aliases or {}).get(name.lower(), name.lower())
    if key not in known:
        raise UnknownName(kind, name, known.keys())
    return _load_cached(cls, known[key])  # type: ignore[arg-type]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _key(field: str) -> str:
    return field.removesuffix(suffix_of(field)) or field


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(raw: Any, hint: Any, field: str, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [h for h in typing.get_args(hint) if h is not type(None)]
        return _convert(raw, options[0], field, where)
    if origin is tuple:
        if not isinstance(raw, list):
            raise BadInput(f"{raw!r} is not a list")
        return tuple(_convert(item, typing.get_args(hint)[0], field, where) for item in raw)
    if origin is dict:
        if not isinstance(raw, dict):
            raise BadInput(f"{raw!r} is not a table")
        return {str(k): _convert(v, typing.get_args(hint)[1], field, where) for k, v in raw.items()}
    if origin is typing.Literal:
        if raw not in typing.get_args(hint):
            raise BadInput(f"{raw!r} is not one of {', '.join(map(str, typing.get_args(hint)))}")
        return raw
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(raw, dict):
            raise BadInput(f"{raw!r} is not a table")
        return build(hint, raw, where)
    return _scalar(raw, hint, field)


def _scalar(raw: Any, hint: Any, field: str) -> Any:
    if hint is float and isinstance(raw, str) and suffix_of(field):
        return parse_quantity(raw, suffix_of(field))
    if hint in (float, int) and isinstance(raw, (int, float)) and not isinstance(raw, bool):
        if not math.isfinite(raw) or raw < 0:
            raise BadInput(f"{raw!r} must be finite and not negative")
        if hint is int and raw != int(raw):
            raise BadInput(f"{raw!r} must be a whole number")
        return hint(raw)
    if hint in (str, bool) and isinstance(raw, hint):
        return raw
    wanted = {float: "a number or a quantity with a unit", int: "a whole number", str: "text", bool: "true or false"}
    raise BadInput(f"{raw!r} is not {wanted.get(hint, hint)}")
