"""Where in a TOML file a key is, and what may be wrong with it: for error messages."""

from __future__ import annotations

import difflib
import re
import sys
from typing import Any, get_args, get_type_hints

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Key = tuple[str, ...]

_UNITS = {
    "_s": "seconds",
    "_bytes": "bytes",
    "_hz": "times a second",
    "_c": "degrees Celsius",
    "_days": "days",
}


def read_toml(text: str) -> dict[str, Any]:
    """Read TOML. Raises ValueError that says what is wrong, and in which line."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its arrays are nested too deeply") from None


def line_of(text: str, key: Key) -> int:
    """Return the line (from 1) of a key; of the table it is missing in; or 1.

    text: valid TOML. Its first lines are valid, too, up to the end of every statement: read so,
    quoted and dotted keys, inline tables and texts of many lines need no parser of our own.
    """
    lines = text.split("\n")
    without, within = 0, len(lines)
    depth = _depth(read_toml(text), key)
    if depth == 0:
        return 1
    while (found := _between(lines, without, within)) is not None:
        middle, raw = found
        if _depth(raw, key) < depth:
            without = middle
        else:
            within = middle
    return without + 1


def _between(lines: list[str], first: int, last: int) -> tuple[int, dict[str, Any]] | None:
    """Return the end of a statement between two others, about the middle, and what is before."""
    middle = (first + last) // 2
    for end in sorted(range(first + 1, last), key=lambda line: abs(line - middle)):
        try:
            return end, tomllib.loads("\n".join([*lines[:end], ""]))
        except tomllib.TOMLDecodeError:
            continue
    return None


def _depth(raw: Any, key: Key) -> int:
    """How many parts of a key there are."""
    for depth, part in enumerate(key):
        if not isinstance(raw, dict) or part not in raw:
            return depth
        raw = raw[part]
    return len(key)


def explain(text: str, key: Key, message: str, kind: Any) -> str:
    """Turn msgspec's message about a table into one sentence: line, key, what to do.

    text: the file. key: of the table that was converted to `kind`.
    """
    what, _, place = message.partition(" - at `$")
    inner = tuple(re.findall(r"\.([\w-]+)", place))
    full = (*key, *inner)
    if unknown := re.search(r"unknown field `(.*)`", what, re.DOTALL):
        known = _fields(kind, inner)
        full = (*full, unknown[1])
        return f"{_at(text, full)} is unknown; {_advice(unknown[1], known)}"
    if missing := re.search(r"required field `(.*)`", what):
        where = ".".join(full) or "the file"
        return f"line {line_of(text, full)}: {where} has no {missing[1]}; add it"
    if wanted := re.search(r"Expected `(.*)`, got `(.*)`", what):
        unit = _unit(full[-1]) if full else ""
        number = ": a number without quotes" if unit and wanted[2] == "str" else ""
        kinds = wanted[1].replace(" | null", "").replace("object", "a table")
        return f"{_at(text, full)} is {wanted[2]}; it takes {kinds}{unit}{number}"
    if length := re.search(r"Expected `array` of length (\d+), got (\d+)", what):
        return f"{_at(text, full)} has {length[2]} numbers in a place for {length[1]}"
    if found := re.search(r"Invalid enum value (.*)", what):
        return f"{_at(text, full)} is {found[1]}; it is one of {', '.join(_choices(kind, inner))}"
    if "Invalid value" in what and (found := re.search(r"Invalid value '?(.*?)'?$", what)):
        tags = sorted(t for t in map(_tag, _structs(kind)) if t)
        name = (*full, "kind") if tags and not inner else full
        return f"{_at(text, name)} is {found[1]!r}; it is one of {', '.join(tags)}"
    return f"{_at(text, full)} is not possible: {what}"


def _at(text: str, key: Key) -> str:
    return f"line {line_of(text, key)}: {'.'.join(key) or 'the file'}"


def _unit(name: str) -> str:
    unit = next((u for ending, u in _UNITS.items() if name.endswith(ending)), None)
    return f", in {unit}" if unit else ""


_UNITS_LIKELY = "ms|s|sec|min|minutes|h|hours|seconds|kb|mb|gb|bytes|hz|days|c|f|celsius"


def _advice(name: str, known: list[str]) -> str:
    # stall_ms, stall_seconds, stall: the key there is has its own unit.
    stem = re.sub(rf"_({_UNITS_LIKELY})$", "", name)
    for other in known:
        if other != name and re.sub(r"_(s|bytes|hz|days|c)$", "", other) == stem:
            return f"it is {other}{_unit(other)}"
    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"it is one of {', '.join(known)}"


def _fields(kind: Any, inner: Key) -> list[str]:
    """The known keys of the table at `inner` below a kind."""
    kinds = _structs(kind)
    for name in inner:
        kinds = [s for k in kinds for s in _structs(get_type_hints(k).get(name))]
    return list(dict.fromkeys(field for k in kinds for field in k.__struct_fields__))


def _choices(kind: Any, inner: Key) -> list[str]:
    """The values that the key at `inner` below a kind may have, where they are few."""
    kinds = _structs(kind)
    for name in inner[:-1]:
        kinds = [s for k in kinds for s in _structs(get_type_hints(k).get(name))]
    hints = [get_type_hints(k).get(inner[-1]) for k in kinds]
    return [str(value) for hint in hints for value in get_args(hint)]


def _structs(hint: Any) -> list[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return [hint]
    return [s for part in get_args(hint) for s in _structs(part)]


def _tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag or "")
