"""JSON Schema (draft 7, what the schemas of tests/schemas use) and the part of XML Schema that JUnit's needs.

Small on purpose, and strict: a keyword that is not known here is an error, so that no rule is passed over in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SCHEMAS = Path(__file__).parent / "schemas"
SAYS_NOTHING = {
    "$comment", "$id", "$schema", "default", "definitions", "description", "else", "examples", "format",
    "markdownDescription", "then", "title",
}  # fmt: skip
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


def json_schema(name: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{name}.json").read_bytes())


def problems(value: Any, schema: Any, root: dict[str, Any], at: str = "$") -> list[str]:
    """Where the value breaks the schema; [] where it does not."""
    if isinstance(schema, bool):
        return [] if schema else [f"{at}: nothing may stand here"]
    if "$ref" in schema:
        node: Any = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            node = node[part] if part else node
        return problems(value, node, root, at)
    found: list[str] = []
    for keyword, rule in schema.items():
        if keyword in SAYS_NOTHING:
            continue
        check = globals().get(f"_{keyword.replace('-', '_')}")
        if check is None:
            raise NotImplementedError(f"schema keyword {keyword}")
        found += check(value, rule, schema, root, at)
    return found


def _fits(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    return not problems(value, schema, root)


def _type(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    kinds = rule if isinstance(rule, list) else [rule]
    for kind in kinds:
        if isinstance(value, TYPES[kind]) and (kind in ("boolean",) or not isinstance(value, bool)):
            return []
    return [f"{at}: {value!r} is no {' or '.join(kinds)}"]


def _properties(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [p for key, inner in rule.items() if key in value for p in problems(value[key], inner, root, f"{at}.{key}")]


def _patternProperties(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    pairs = value.items() if isinstance(value, dict) else ()
    return [
        p for pattern, inner in rule.items() for key, v in pairs if re.search(pattern, key)
        for p in problems(v, inner, root, f"{at}.{key}")
    ]  # fmt: skip


def _additionalProperties(value: Any, rule: Any, schema: Any, root: Any, at: str) -> list[str]:
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    rest = [key for key in value if key not in known] if isinstance(value, dict) else []
    rest = [key for key in rest if not any(re.search(pattern, key) for pattern in patterns)]
    return [p for key in rest for p in problems(value[key], rule, root, f"{at}.{key}")]


def _required(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    return [f"{at}: lacks {key}" for key in rule if key not in value] if isinstance(value, dict) else []


def _items(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    found = value if isinstance(value, list) else []
    rules = rule if isinstance(rule, list) else [rule] * len(found)
    return [
        p for n, (item, r) in enumerate(zip(found, rules, strict=False)) for p in problems(item, r, root, f"{at}.{n}")
    ]


def _anyOf(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    return [] if any(_fits(value, one, root) for one in rule) else [f"{at}: {value!r} fits none of {len(rule)} forms"]


def _oneOf(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    fits = sum(_fits(value, one, root) for one in rule)
    return [] if fits == 1 else [f"{at}: {str(value)[:80]} fits {fits} of {len(rule)} forms"]


def _allOf(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    return [p for one in rule for p in problems(value, one, root, at)]


def _not(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    return [f"{at}: is what it may not be"] if _fits(value, rule, root) else []


def _if(value: Any, rule: Any, schema: Any, root: Any, at: str) -> list[str]:
    return problems(value, schema.get("then" if _fits(value, rule, root) else "else", True), root, at)


def _enum(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    return [] if value in rule else [f"{at}: {value!r} is none of {rule}"]


def _const(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    return [] if value == rule else [f"{at}: {value!r} is not {rule!r}"]


def _pattern(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    if not isinstance(value, str) or re.search(rule, value):
        return []
    return [f"{at}: {value!r} does not match {rule}"]


def _dependencies(value: Any, rule: Any, _: Any, root: Any, at: str) -> list[str]:
    found = [inner for key, inner in rule.items() if isinstance(value, dict) and key in value]
    listed = [
        _required(value, one, None, None, at) if isinstance(one, list) else problems(value, one, root, at)
        for one in found
    ]
    return [p for one in listed for p in one]


def _size(sign: int, kinds: Any) -> Any:
    def check(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
        too = isinstance(value, kinds) and (len(value) - rule) * sign < 0
        return [f"{at}: has a size of {len(value)}, the limit is {rule}"] if too else []

    return check


_minItems, _maxItems = _size(1, list), _size(-1, list)
_minLength, _maxLength = _size(1, str), _size(-1, str)
_minProperties, _maxProperties = _size(1, dict), _size(-1, dict)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _minimum(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    return [f"{at}: {value} is below {rule}"] if _number(value) and value < rule else []


def _maximum(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    return [f"{at}: {value} is above {rule}"] if _number(value) and value > rule else []


def _uniqueItems(value: Any, rule: Any, _: Any, __: Any, at: str) -> list[str]:
    twice = rule and isinstance(value, list) and any(value.count(item) > 1 for item in value)
    return [f"{at}: something stands twice"] if twice else []


# -- XML Schema: elements by name, their attributes, and which children each may have ----------------------------------

XS = "{http://www.w3.org/2001/XMLSchema}"


def junit_problems(text: str) -> list[str]:
    """Where the document breaks junit-10.xsd."""
    schema = ElementTree.parse(SCHEMAS / "junit-10.xsd").getroot()
    patterns = {
        t.get("name"): t.find(f"{XS}restriction/{XS}pattern").get("value")  # type: ignore[union-attr]
        for t in schema.findall(f"{XS}simpleType")
    }
    rules = {element.get("name"): element for element in schema.findall(f"{XS}element")}
    return list(_xml_problems(ElementTree.fromstring(text), rules, patterns))


def _xml_problems(element: Any, rules: Any, patterns: Any) -> Iterator[str]:
    rule = rules.get(element.tag)
    if rule is None:
        yield f"{element.tag} is no element of the schema"
        return
    inner = rule.find(f"{XS}complexType")
    attributes = {a.get("name"): a for a in (inner.findall(f"{XS}attribute") if inner is not None else ())}
    children = {e.get("ref") for e in (inner.iter(f"{XS}element") if inner is not None else ())}
    for name, value in element.attrib.items():
        if name not in attributes:
            yield f"{element.tag} has no attribute {name}"
        elif (pattern := patterns.get(attributes[name].get("type"))) and not re.fullmatch(pattern, value):
            yield f"{element.tag} {name}={value} does not match {pattern}"
    for name, attribute in attributes.items():
        if attribute.get("use") == "required" and name not in element.attrib:
            yield f"{element.tag} lacks {name}"
    mixed = inner is None or inner.get("mixed") == "true"
    if not mixed and ((element.text or "").strip() or any((child.tail or "").strip() for child in element)):
        yield f"{element.tag} may hold no text"
    for child in element:
        if child.tag not in children:
            yield f"{element.tag} may not hold {child.tag}"
        yield from _xml_problems(child, rules, patterns)
