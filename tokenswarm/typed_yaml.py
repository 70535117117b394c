"""YAML text -> frozen msgspec structs, or one sentence with file and line.

The type of each field decides how its scalar is read (so `no` is a fine model name and `1:30` no number); unknown keys
get a suggestion; anchors, aliases, tags and duplicate keys are refused (a YAML bomb is 400 bytes of them).
"""

from __future__ import annotations

import difflib
import math
import re
import types
import typing
from typing import Any, Literal, TypeVar

import msgspec
import yaml

from tokenswarm.errors import ConfigError

T = TypeVar("T")
Seconds = typing.NewType("Seconds", float)
"""A duration; written `500ms`, `30s`, `2m`, `1h30m` or a plain number of seconds."""

TEXT_BYTES_MAX = 1 << 20  # a profile is a page of text; anything larger is the wrong file
DEPTH_MAX = 32

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse(text: str, origin: str) -> yaml.nodes.MappingNode:
    """The node tree of one YAML document that is a mapping. `origin` is what messages call it (a path)."""
    if len(text) > TEXT_BYTES_MAX:
        raise ConfigError(f"{origin}: larger than 1 MiB; is this a profile?")
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


def _compose(text: str, origin: str) -> yaml.nodes.Node | None:
    try:
        loader = yaml.SafeLoader(text)
        loader.name = origin
        _refuse_references(text, origin)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{origin}:{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{origin}: not valid YAML text: {error.reason}") from None


def _refuse_references(text: str, origin: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"{origin}:{line}: anchors and aliases (& and *) are not allowed; write the value out")
        if getattr(event, "tag", None):
            raise ConfigError(f"{origin}:{line}: tags (!) are not allowed; the field's type is known")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            raise ConfigError(f"{origin}:{line}: nested deeper than {DEPTH_MAX} levels")


def place(node: yaml.nodes.Node) -> str:
    """`file:line` of a node, or the name of the command-line option that it came from."""
    mark = node.start_mark or _mark("?")
    return mark.name if mark.name.startswith("--") else f"{mark.name}:{mark.line + 1}"


def set_value(root: yaml.nodes.MappingNode, dotted: str, value: yaml.nodes.Node) -> None:
    """Put `value` at a dotted key such as `engine.model` or `load.stages.0.users`, creating mappings on the way."""
    origin = place(value)
    parts = dotted.split(".")
    node: yaml.nodes.Node = root
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if isinstance(node, yaml.nodes.SequenceNode):
            if not part.isdigit() or int(part) >= len(node.value):
                raise ConfigError(f"{origin}: `{part}` in `{dotted}` is no position of a list of {len(node.value)}")
            if last:
                node.value[int(part)] = value
                return
            node = node.value[int(part)]
            continue
        if not isinstance(node, yaml.nodes.MappingNode):
            raise ConfigError(f"{origin}: `{'.'.join(parts[:i])}` is a single value; it has no key `{part}`")
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
    if not isinstance(node, yaml.nodes.MappingNode):
        raise ConfigError(f"{place(node)}: `{path}` takes `key: value` entries, not a {_shape(node)}")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        where = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise ConfigError(f"{place(key_node)}: unknown key `{where}`{suggestion(str(key), list(hints))}")
        if key in values:
            raise ConfigError(f"{place(key_node)}: `{where}` is given twice")
        values[key] = _read(value_node, hints[key], where)
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            raise ConfigError(f"{place(node)}: `{path + '.' if path else ''}{field.name}` is missing")
    try:
        return kind(**values)
    except ValueError as error:  # a struct's own check of its values
        raise ConfigError(f"{place(node)}: {error}") from None


def suggestion(word: str, known: list[str]) -> str:
    """`; did you mean …?` or the list of what there is."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else f"; known here: {', '.join(sorted(known))}"


def _read_choice(node: yaml.nodes.Node, choices: tuple[Any, ...], path: str) -> Any:
    text = _text(node, path)
    for choice in choices:
        if text == str(choice):
            return choice
    raise ConfigError(f"{place(node)}: `{path}: {text}` is not one of {', '.join(str(c) for c in choices)}")


def _read_list(node: yaml.nodes.Node, item: Any, path: str) -> tuple[Any, ...]:
    if isinstance(node, yaml.nodes.SequenceNode):
        return tuple(_read(child, item, f"{path}.{i}") for i, child in enumerate(node.value))
    return (_read(node, item, path),)  # one value where several may stand


def _read_dict(node: yaml.nodes.Node, item: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, yaml.nodes.MappingNode):
        raise ConfigError(f"{place(node)}: `{path}` takes `key: value` entries, not a {_shape(node)}")
    return {str(key.value): _read(value, item, f"{path}.{key.value}") for key, value in node.value}


def _read_plain(node: yaml.nodes.Node, path: str) -> Any:
    """A value whose type we don't know (extra body fields): YAML's own reading, plain JSON types only."""
    if isinstance(node, yaml.nodes.MappingNode):
        return {str(k.value): _read_plain(v, f"{path}.{k.value}") for k, v in node.value}
    if isinstance(node, yaml.nodes.SequenceNode):
        return [_read_plain(v, path) for v in node.value]
    constructor = yaml.constructor.SafeConstructor()
    value = constructor.construct_object(node)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place(node)}: `{path}` must be a finite number")
    return value if isinstance(value, str | int | float | bool | None) else node.value


def _read_scalar(node: yaml.nodes.Node, kind: Any, path: str) -> Any:
    text = _text(node, path)
    if kind is str:
        if not text:
            raise ConfigError(f"{place(node)}: `{path}` is empty")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{place(node)}: `{path}: {text}` is neither true nor false")
        return text.lower() == "true"
    if kind is Seconds:
        return _duration(node, text, path)
    return _number(node, kind, text, path)


def _text(node: yaml.nodes.Node, path: str) -> str:
    if not isinstance(node, yaml.nodes.ScalarNode):
        raise ConfigError(f"{place(node)}: `{path}` takes a single value, not a {_shape(node)}")
    return str(node.value)


def _number(node: yaml.nodes.Node, kind: Any, text: str, path: str) -> Any:
    try:
        value = int(text.replace("_", "")) if kind is int else float(text)
    except ValueError:
        noun = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{place(node)}: `{path}: {text}` is not {noun}") from None
    if not math.isfinite(value):
        raise ConfigError(f"{place(node)}: `{path}` must be a finite number")
    return value


def _duration(node: yaml.nodes.Node, text: str, path: str) -> float:
    compact = text.replace(" ", "")
    parts = _DURATION_PART.findall(compact)
    if parts and "".join(a + b for a, b in parts) == compact:
        return sum(float(amount) * _UNIT_SECONDS[unit] for amount, unit in parts)
    try:
        seconds = float(compact)
    except ValueError:
        seconds = -1.0
    if not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(f"{place(node)}: `{path}: {text}` is not a duration; write 30s, 2m, 500ms or 1h30m")
    return seconds


def _shape(node: yaml.nodes.Node) -> str:
    if isinstance(node, yaml.nodes.MappingNode):
        return "mapping"
    return "list" if isinstance(node, yaml.nodes.SequenceNode) else "single value"
