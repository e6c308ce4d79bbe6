import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnsmail.directory.toml_lines import Path, dotted, find_lines, nearest, quoted

DOCUMENT = '''\
# a comment with [brackets] and a "quote
title = "x"   # host."alpha.example" = 1

[host."alpha.example"] # table
addresses = [
    "10.77.0.11/24", # ] no end
    # nor here: ]
    'fd77::11/64',
]
"context" = "alias"
note = """
[host."never.example"]
users = ["nobody"]
"""
path = \'\'\'
it\'s = here
\'\'\'
a . "b.c" . d = 1979-05-27 07:32:00
[host.'beta.example']
inline = { one = 1, "two" = { three = [ [1,2], [3] ] }, dotted.key = "}" }
link = "lan0"
[host."\\u0067amma.example"]
mtu=1500
[[item]]
x = 1
[[item]]
y = 2
[item.sub]
z = 3
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("host",), 4),
        (("host", "alpha.example"), 4),
        (("host", "alpha.example", "addresses"), 5),
        (("host", "alpha.example", "addresses", 0), 6),
        (("host", "alpha.example", "addresses", 1), 8),
        (("host", "alpha.example", "context"), 10),
        (("host", "alpha.example", "note"), 11),
        (("host", "alpha.example", "path"), 15),
        (("host", "alpha.example", "a"), 18),
        (("host", "alpha.example", "a", "b.c", "d"), 18),
        (("host", "beta.example"), 19),
        (("host", "beta.example", "inline", "two", "three", 1, 0), 20),
        (("host", "beta.example", "inline", "dotted", "key"), 20),
        (("host", "beta.example", "link"), 21),
        (("host", "gamma.example", "mtu"), 23),
        (("item", 0, "x"), 25),
        (("item", 1), 26),
        (("item", 1, "y"), 27),
        (("item", 1, "sub", "z"), 29),
    ],
)
def test_lines(path, line):
    """Every key and element has the line it is written on."""
    tomllib.loads(DOCUMENT)

    assert line == find_lines(DOCUMENT)[path]


def test_nothing_else_is_found():
    """What stands in strings and comments is no key."""
    found = find_lines(DOCUMENT)

    assert ("host", "never.example") not in found
    assert paths_of(tomllib.loads(DOCUMENT)) == set(found)


def test_windows_line_ends():
    """A carriage return before the end of a line counts for nothing."""
    found = find_lines("a = 1\r\n\r\n[b]\r\nc = [\r\n1,\r\n]\r\n")

    assert {("a",): 1, ("b",): 3, ("b", "c"): 4, ("b", "c", 0): 5} == found


def test_nearest():
    """What is missing is looked for where it should be."""
    lines: dict[Path, int] = {("host",): 4, ("host", "a"): 7}

    assert 7 == nearest(lines, ("host", "a", "addresses"))
    assert 4 == nearest(lines, ("host", "b", "addresses"))
    assert 1 == nearest(lines, ("other",))


def test_dotted():
    """Paths look as in the file."""
    path = ("host", "alpha.example", "addresses", 1)

    assert 'host."alpha.example".addresses[1]' == dotted(path)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_quoted(text):
    """Any text comes back as it was, as value and as key."""
    document = f"{quoted(text)} = {quoted(text)}"

    assert {text: text} == tomllib.loads(document)
    assert {(text,): 1} == find_lines(document)


# Documents of any shape ----------------------------------------------------------

KEYS = st.one_of(
    st.text("abc-_1", min_size=1, max_size=3),
    st.text("a.=\"'[]#\\ \u00e9\u2028\n", max_size=4),
)
SCALARS = st.one_of(
    st.integers(),
    st.booleans(),
    st.text("ab\"'\\[]{}#,=.\n \u2028", max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)
TABLES = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4)
BLANKS = st.sampled_from(["", " ", "\t", "  "])
BREAKS = st.sampled_from(["\n", "\n\n", " # [x] \" ' = {\n", "\r\n"])


class Writer:
    """Writes a document in one of its many spellings, and notes the lines."""

    def __init__(self, draw):
        self.draw = draw
        self.text = ""
        self.lines = {}

    @property
    def line(self):
        return self.text.count("\n") + 1

    def write(self, text):
        self.text += text

    def note(self, path):
        self.lines.setdefault(path, self.line)

    def blank(self):
        self.write(self.draw(BLANKS))

    def key(self, key):
        literal = key.isprintable() and "'" not in key
        choices = [quoted(key)]
        if literal:
            choices.append(f"'{key}'")
        if key and all(c in "abc-_1" for c in key):
            choices.append(key)
        self.write(self.draw(st.sampled_from(choices)))

    def string(self, text):
        choices = [quoted(text)]
        if "\\" not in text and '"""' not in text and not text.endswith('"'):
            choices.append(f'"""\n{text}"""')
        if text.endswith('"') and '"""' not in text and "\\" not in text:
            choices.append(
                f'"""\n{text}"""' if not text.endswith('"""') else quoted(text)
            )
        if "'''" not in text:
            choices.append(f"'''\n{text}'''")
        self.write(self.draw(st.sampled_from(choices)))

    def value(self, path, value):
        if isinstance(value, bool):
            self.write(str(value).lower())
        elif isinstance(value, int):
            self.write(str(value))
        elif isinstance(value, str):
            self.string(value)
        elif isinstance(value, list):
            self.array(path, value)
        else:
            self.inline(path, value)

    def array(self, path, values):
        self.write("[")
        for number, value in enumerate(values):
            self.write(self.draw(BREAKS | BLANKS))
            self.note((*path, number))
            self.value((*path, number), value)
            self.write(self.draw(BREAKS | BLANKS))
            if number < len(values) - 1 or self.draw(st.booleans()):
                self.write(",")
        self.write(self.draw(BREAKS | BLANKS) + "]")

    def inline(self, path, values):
        self.write("{")
        for number, (key, value) in enumerate(values.items()):
            self.write("," if number else "")
            self.pair((*path, key), key, value)
        self.write("}")

    def pair(self, path, key, value):
        self.blank()
        self.note(path)
        self.key(key)
        self.blank()
        self.write("=")
        self.blank()
        self.value(path, value)
        self.blank()

    def document(self, tables):
        self.write(self.draw(BREAKS))
        for name, table in tables.items():
            self.blank()
            self.note((name,))
            self.write("[")
            self.key(name)
            self.write("]" + self.draw(BREAKS))
            for key, value in table.items():
                self.pair((name, key), key, value)
                self.write(self.draw(BREAKS))


def paths_of(value, path=()):
    """Return the path of everything in a document."""
    pairs = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    found = {path} - {()}
    for key, inner in pairs:
        found |= paths_of(inner, (*path, key))
    return found


@settings(max_examples=20)  # each draws hundreds of things
@given(st.data(), TABLES)
def test_any_document(data, tables):
    """Whatever the spelling, every line is right and nothing is missing."""
    writer = Writer(data.draw)
    writer.document(tables)
    try:
        read = tomllib.loads(writer.text)
    except tomllib.TOMLDecodeError as error:
        raise AssertionError(writer.text) from error

    assert paths_of(read) == set(writer.lines)
    assert writer.lines == find_lines(writer.text)


@given(st.text("ab[]{}\"'#=,.\\\n ", max_size=60))
def test_any_text(text):
    """It ends, whatever it is given; of what is TOML it finds every key."""
    found = find_lines(text)
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert paths_of(read) == set(found)
