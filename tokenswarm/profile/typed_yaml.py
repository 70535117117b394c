"""YAML text -> frozen msgspec structs, or one sentence with file and line.

The type of each field decides how its scalar is read: `no` is a fine model name and `1:30` no number. Where there is no
type, plain scalars are read as JSON would. Unknown keys get a suggestion; anchors, aliases, tags and duplicate keys are
refused (a YAML bomb is 400 bytes of them). Whatever the text is, it gives a value or a ConfigError, within seconds.
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from tokenswarm.errors import ConfigError

T = TypeVar("T")
Seconds = typing.NewType("Seconds", float)
"""A duration; written `500ms`, `30s`, `2m`, `1h30m` or a plain number of seconds."""

TEXT_BYTES_MAX = 256 << 10  # a profile is a page of text; anything larger is the wrong file (and takes PyYAML seconds)
DEPTH_MAX = 32
NUMBER_CHARS_MAX = 40  # a longer one is none that we could use; int() and regular expressions are quadratic in it
INT_MAX = 2**63 - 1
SECONDS_MAX = 10 * 365 * 86_400.0
SHOWN_CHARS_MAX = 80  # of a user's text in a sentence
NOT_FILES = ("command line", "locustfile")  # origins that have no lines; as those that begin with "--"

_JSON_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse(text: str, origin: str) -> yaml.nodes.MappingNode:
    """The node tree of one YAML document that is a mapping. `origin` is what messages call it (a path)."""
    node = _compose(text, origin)
    if node is None:
        raise ConfigError(f"{origin}: the file is empty; write at least `target:` and `dataset:`")
    if not isinstance(node, yaml.nodes.MappingNode):
        raise ConfigError(f"{place(node)}: expected `key: value` lines at the top level")
    return node


def parse_value(text: str, origin: str) -> yaml.nodes.Node:
    """The node of one YAML value as it is given on a command line (`--set load.stages=[...]`)."""
    node = _compose(text, origin)
    return node if node is not None else yaml.nodes.ScalarNode("tag:yaml.org,2002:null", "", _mark(origin))


def literal(text: str, origin: str) -> yaml.nodes.Node:
    """A node that holds exactly this text (`--model a:b` is no mapping)."""
    return yaml.nodes.ScalarNode("tag:yaml.org,2002:str", text, _mark(origin))


def _mark(origin: str) -> yaml.Mark:
    return yaml.Mark(origin, 0, 0, 0, "", 0)


class _Loader(yaml.SafeLoader):
    """Composes nodes, and refuses references, tags and endless nesting before they cost anything."""

    _depth = 0

    def compose_node(self, parent: yaml.nodes.Node | None, index: Any) -> yaml.nodes.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # types-PyYAML says nothing about it
        where = _at(self.name, event.start_mark.line + 1)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{where}: anchors and aliases (& and *) are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise ConfigError(f"{where}: tags (!) are not allowed; the field's type is known")
        if self._depth > DEPTH_MAX:
            raise ConfigError(f"{where}: nested deeper than {DEPTH_MAX} levels")
        self._depth += 1
        node: yaml.nodes.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _compose(text: str, origin: str) -> yaml.nodes.Node | None:
    if len(text) > TEXT_BYTES_MAX:
        raise ConfigError(f"{origin}: larger than {TEXT_BYTES_MAX >> 10} KiB; is this a profile?")
    try:
        loader = _Loader(text)
        loader.name = origin
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        said = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{_at(origin, line)}: not valid YAML: {said}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{origin}: not valid YAML text: {error.reason}") from None
    except (ValueError, OverflowError):  # PyYAML's own chr() and int() of escapes and directives
        raise ConfigError(f"{origin}: not valid YAML: an escape or a directive holds an impossible number") from None


def _at(origin: str, line: int) -> str:
    return origin if origin.startswith("--") or origin in NOT_FILES else f"{origin}:{line}"


def place(node: yaml.nodes.Node) -> str:
    """`file:line` of a node, or the name of the command-line option that it came from."""
    mark = node.start_mark or _mark("?")
    return _at(mark.name, mark.line + 1)


def shown(text: str) -> str:
    """A user's text as it may stand in a sentence: printable, on one line, not endless."""
    line = "".join(c if c.isprintable() else "?" for c in text[: SHOWN_CHARS_MAX + 1])
    return line if len(line) <= SHOWN_CHARS_MAX else line[:SHOWN_CHARS_MAX] + "…"


def find(root: yaml.nodes.Node, dotted: str) -> yaml.nodes.Node | None:
    """The node at a dotted key; None where nothing stands there, or null."""
    node: yaml.nodes.Node | None = root
    for part in dotted.split("."):
        if isinstance(node, yaml.nodes.MappingNode):
            node = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.nodes.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
        else:
            return None
    return None if node is None or _is_null(node) else node


def set_value(root: yaml.nodes.MappingNode, dotted: str, value: yaml.nodes.Node) -> None:
    """Put `value` at a dotted key such as `engine.model` or `load.stages.0.users`, creating mappings on the way."""
    origin = place(value)
    parts = dotted.split(".")
    if len(parts) > DEPTH_MAX:
        raise ConfigError(f"{origin}: nested deeper than {DEPTH_MAX} levels")
    node: yaml.nodes.Node = root
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, yaml.nodes.SequenceNode):
            if not re.fullmatch(r"[0-9]{1,6}", part) or int(part) >= len(node.value):
                raise ConfigError(
                    f"{origin}: `{shown(part)}` in `{shown(dotted)}` is no position of a list of {len(node.value)}; "
                    "positions count from 0"
                )
            if last:
                node.value[int(part)] = value
                return
            node = node.value[int(part)]
            continue
        if not isinstance(node, yaml.nodes.MappingNode):
            held = shown(".".join(parts[:i]))
            raise ConfigError(f"{origin}: `{held}` is a single value; it has no key `{shown(part)}`")
        pair = next((p for p in node.value if p[0].value == part), None)
        if last:
            _replace(node, pair, part, value)
            return
        if pair is None or _is_null(pair[1]):
            child = yaml.nodes.MappingNode("tag:yaml.org,2002:map", [], value.start_mark, value.end_mark)
            _replace(node, pair, part, child)
            node = child
        else:
            node = pair[1]


def _replace(node: yaml.nodes.MappingNode, pair: Any, key: str, value: yaml.nodes.Node) -> None:
    key_node = yaml.nodes.ScalarNode("tag:yaml.org,2002:str", key, value.start_mark, value.end_mark)
    if pair is None:
        node.value.append((key_node, value))
    else:
        node.value[node.value.index(pair)] = (key_node, value)


def read(node: yaml.nodes.Node, kind: type[T], path: str = "") -> T:
    """The node as `kind` (a msgspec struct, scalar, tuple, dict, Literal or union with None)."""
    return typing.cast(T, _read(node, kind, path))


def _is_null(node: yaml.nodes.Node) -> bool:
    return isinstance(node, yaml.nodes.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _read(node: yaml.nodes.Node, kind: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(node, kind, path)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _read_struct(node, kind, path)
    if origin is Literal:
        return _read_choice(node, typing.get_args(kind), path)
    if origin is tuple:
        return _read_list(node, typing.get_args(kind)[0], path)
    if origin is dict:
        return _read_dict(node, typing.get_args(kind)[1], path)
    if kind is object:
        return _read_plain(node, path)
    return _read_scalar(node, kind, path)


def _read_union(node: yaml.nodes.Node, kind: Any, path: str) -> Any:
    options = [k for k in typing.get_args(kind) if k is not type(None)]
    if len(options) < len(typing.get_args(kind)) and _is_null(node):
        return None
    if len(options) == 1:
        return _read(node, options[0], path)
    wanted = "list" if isinstance(node, yaml.nodes.SequenceNode) else "other"
    for option in options:
        if (typing.get_origin(option) is tuple) == (wanted == "list"):
            return _read(node, option, path)
    raise ConfigError(f"{place(node)}: `{path}` can't be a {_shape(node)}")


def _read_struct(node: yaml.nodes.Node, kind: type[msgspec.Struct], path: str) -> Any:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, where, key_node, value_node in _entries(node, path):
        if key not in hints:
            raise ConfigError(f"{place(key_node)}: unknown key `{shown(where)}`{suggestion(key, list(hints))}")
        values[key] = _read(value_node, hints[key], where)
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            raise ConfigError(f"{place(node)}: `{path + '.' if path else ''}{field.name}` is missing")
    try:
        return kind(**values)
    except ValueError as error:  # a struct's own check of its values
        raise ConfigError(f"{place(_blamed(node, str(error)))}: {error}") from None


def _entries(node: yaml.nodes.Node, path: str) -> Iterator[tuple[str, str, yaml.nodes.Node, yaml.nodes.Node]]:
    """(key, its dotted path, key node, value node) of a mapping; each key once."""
    if not isinstance(node, yaml.nodes.MappingNode):
        what = f"`{shown(path)}`" if path else "the top level"
        raise ConfigError(f"{place(node)}: {what} takes `key: value` entries, not a {_shape(node)}")
    seen = set()
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.nodes.ScalarNode):
            raise ConfigError(f"{place(key_node)}: a key must be a word, not a {_shape(key_node)}")
        key = _sendable(key_node, path)
        where = f"{path}.{key}" if path else key
        if key in seen:
            raise ConfigError(f"{place(key_node)}: `{shown(where)}` is given twice")
        seen.add(key)
        yield key, where, key_node, value_node


def _blamed(node: yaml.nodes.Node, sentence: str) -> yaml.nodes.Node:
    """The entry that a struct's own sentence names first in backticks, for its line; else the whole mapping.

    Its dotted path may begin above the mapping, and lead on below it (`load.stages.1.rate`).
    """
    named = re.search(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)", sentence)
    blamed = node
    for part in named[1].split(".") if named else ():
        if isinstance(node, yaml.nodes.SequenceNode):
            if not part.isdigit() or int(part) >= len(node.value):
                break
            blamed = node = node.value[int(part)]
        elif isinstance(node, yaml.nodes.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is not None:
                blamed, node = pair
    return blamed


def suggestion(word: str, known: list[str]) -> str:
    """`; did you mean …?` or the list of what there is."""
    close = difflib.get_close_matches(word[:SHOWN_CHARS_MAX], known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known here: {', '.join(sorted(known))}"


def _read_choice(node: yaml.nodes.Node, choices: tuple[Any, ...], path: str) -> Any:
    text = _text(node, path)
    for choice in choices:
        if text == str(choice):
            return choice
    raise ConfigError(f"{place(node)}: `{path}: {shown(text)}` is not one of {', '.join(str(c) for c in choices)}")


def _read_list(node: yaml.nodes.Node, item: Any, path: str) -> tuple[Any, ...]:
    if isinstance(node, yaml.nodes.SequenceNode):
        return tuple(_read(child, item, f"{path}.{i}") for i, child in enumerate(node.value))
    return (_read(node, item, path),)  # one value where several may stand


def _read_dict(node: yaml.nodes.Node, item: Any, path: str) -> dict[str, Any]:
    return {key: _read(value_node, item, where) for key, where, _, value_node in _entries(node, path)}


def _read_plain(node: yaml.nodes.Node, path: str) -> Any:
    """A value whose type we don't know (extra body fields), as JSON would have it.

    YAML 1.1's own reading would make `no` false, 1:30 ninety, 010 eight and 2001-01-01 a date.
    """
    if isinstance(node, yaml.nodes.MappingNode):
        return {key: _read_plain(value_node, where) for key, where, _, value_node in _entries(node, path)}
    if isinstance(node, yaml.nodes.SequenceNode):
        return [_read_plain(child, f"{path}.{i}") for i, child in enumerate(node.value)]
    text = _sendable(node, path)
    if isinstance(node, yaml.nodes.ScalarNode) and node.style is not None:  # in quotes, or a block of text
        return text
    if _is_null(node):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if not _JSON_NUMBER.fullmatch(text):
        return text
    return _number(node, float if set(text) & set(".eE") else int, text, path)


def _read_scalar(node: yaml.nodes.Node, kind: Any, path: str) -> Any:
    text = _text(node, path)
    if kind is str:
        text = _sendable(node, path)
        if not text:
            raise ConfigError(f"{place(node)}: `{path}` is empty")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{place(node)}: `{path}: {shown(text)}` is neither true nor false")
        return text.lower() == "true"
    if kind is Seconds:
        return _duration(node, text, path)
    return _number(node, kind, text, path)


def _text(node: yaml.nodes.Node, path: str) -> str:
    if not isinstance(node, yaml.nodes.ScalarNode):
        raise ConfigError(f"{place(node)}: `{path}` takes a single value, not a {_shape(node)}")
    return str(node.value)


def _sendable(node: yaml.nodes.Node, path: str) -> str:
    """The scalar's text, which must be one that JSON in UTF-8 can carry and a file name can hold."""
    text = str(node.value)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{place(node)}: `{shown(path)}` holds half of a surrogate pair, which UTF-8 can't express")
    if "\0" in text:
        raise ConfigError(f"{place(node)}: `{shown(path)}` holds a NUL character")
    return text


def _number(node: yaml.nodes.Node, kind: Any, text: str, path: str) -> Any:
    noun = "a whole number" if kind is int else "a number"
    try:
        if len(text) > NUMBER_CHARS_MAX:
            raise ValueError
        value = int(text.replace("_", "")) if kind is int else float(text)
    except ValueError:
        raise ConfigError(f"{place(node)}: `{shown(path)}: {shown(text)}` is not {noun}") from None
    if not (-INT_MAX <= value <= INT_MAX if kind is int else math.isfinite(value)):
        problem = "beyond 64 bits" if kind is int else "no finite number"
        raise ConfigError(f"{place(node)}: `{shown(path)}: {shown(text)}` is {problem}")
    return value


def _duration(node: yaml.nodes.Node, text: str, path: str) -> float:
    compact = text.replace(" ", "")[: NUMBER_CHARS_MAX + 1]
    parts = _DURATION_PART.findall(compact)
    try:
        if parts and "".join(a + b for a, b in parts) == compact:
            seconds = sum(float(amount) * _UNIT_SECONDS[unit] for amount, unit in parts)
        else:
            seconds = float(compact)
    except ValueError:
        seconds = -1.0
    if len(compact) > NUMBER_CHARS_MAX or not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(f"{place(node)}: `{path}: {shown(text)}` is not a duration; write 30s, 2m, 500ms or 1h30m")
    if seconds > SECONDS_MAX:
        raise ConfigError(f"{place(node)}: `{path}: {shown(text)}` is longer than ten years")
    return seconds


def _shape(node: yaml.nodes.Node) -> str:
    if isinstance(node, yaml.nodes.MappingNode):
        return "mapping"
    return "list" if isinstance(node, yaml.nodes.SequenceNode) else "single value"
