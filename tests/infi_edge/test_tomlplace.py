"""Where a key is in a TOML file, whatever way it is written; and what is said about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi_edge.tomlplace import line_of, read_toml

TEXT = """\
# [sources.a]   a comment is no table
state = "x"     # filter = 1
[sources.yard]
address = 'camera:0'
masks = [
    # [models.m]
    [[0.1, 0.2],
     [0.3, 0.4], [0.5, 0.6]],
]
filter = \"\"\"
[sources.fake]
model = 5
\"\"\"
model = "m"
cache.entries = 5
events = { begin_s = 1.0, end_s = 2.0 }
"pre_roll_s" = 3
[ sources . "front door" ] # blanks and quotes
'address' = "x"

[sources.yard.camera]
width = 640
[models]
m.path = "a"
m . threads = 2
[models."n.o"]
path = "b"
[sinks.out]
kind = 'mqtt'
"""
PLACES = {
    ("state",): 2,
    ("sources",): 3,
    ("sources", "yard"): 3,
    ("sources", "yard", "address"): 4,
    ("sources", "yard", "masks"): 5,
    ("sources", "yard", "filter"): 10,
    ("sources", "yard", "model"): 14,
    ("sources", "yard", "cache", "entries"): 15,
    ("sources", "yard", "events", "end_s"): 16,
    ("sources", "yard", "pre_roll_s"): 17,
    ("sources", "front door"): 18,
    ("sources", "front door", "address"): 19,
    ("sources", "yard", "camera"): 21,
    ("sources", "yard", "camera", "width"): 22,
    ("models", "m", "path"): 24,
    ("models", "m", "threads"): 25,
    ("models", "n.o", "path"): 27,
    ("sinks", "out", "kind"): 29,
    # What is missing is told where its table is.
    ("sources", "yard", "stall_s"): 3,
    ("sources", "yard", "camera", "height"): 21,
    ("sources", "absent", "filter"): 3,
    ("web", "bind"): 1,
    (): 1,
}


@pytest.mark.parametrize("key", PLACES, ids=".".join)
def test_the_line_of_a_key(key):
    assert line_of(TEXT, key) == PLACES[key]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_ends_of_lines_may_be_those_of_windows(end):
    text = end.join(["a = 1", "", "[b]", "# x", "c = 2"])
    assert line_of(text, ("b", "c")) == 5
    assert line_of(text, ("b",)) == 3


def test_an_array_of_tables_has_a_line():
    assert line_of("a = 1\n[[sinks]]\nkind = 'x'\n[[sinks]]\n", ("sinks",)) == 2


@given(st.data())
def test_every_key_of_a_file_is_found_where_it_was_written(data):
    lines: list[str] = []
    places: dict[tuple[str, ...], int] = {}
    for table in range(data.draw(st.integers(1, 5))):
        name = data.draw(st.sampled_from(["t{}", '"t{}"', "x.t{}", 'x."t{}"'])).format(table)
        lines.append(f"[{name}]")
        for index in range(data.draw(st.integers(0, 4))):
            key = f"k{index}"
            written = data.draw(st.sampled_from([key, f'"{key}"', f"'{key}'"]))
            value = data.draw(st.sampled_from(["1", '"[a]"', "[\n[1],\n# b\n]", "'''\n[t]\n'''"]))
            parts = tuple(name.replace('"', "").split("."))
            places[(*parts, key)] = "\n".join([*lines, ""]).count("\n") + 1
            lines.append(f"{written} = {value}")
        lines += data.draw(st.lists(st.sampled_from(["", "# k0 = 1", "  "]), max_size=2))
    text = "\n".join(lines)
    for place, line in places.items():
        assert line_of(text, place) == line


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = 1\na = 2", "a", "a = " + "9" * 5000, "[a]\n[a]", "a = \0"]
)
def test_what_is_no_toml_is_one_error(text):
    with pytest.raises(ValueError, match=r"\w"):
        read_toml(text)
