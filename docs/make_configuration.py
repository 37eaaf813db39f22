"""Writes docs/configuration.md from the schema, so that the page cannot say what the code does not do.

python docs/make_configuration.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.config import RunConfig

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

One YAML file describes a run. Every key it may hold is here; any other key is an error that names the
line and the nearest valid key. A key without a default is required. `--set a.b=c` on the command line
overrides one key, and `--set a.0.b=c` one of a list's items. The resolved configuration, with every
default filled in, is kept beside what was made from it.

This page is made from the schema by `python docs/make_configuration.py`.
"""

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "pattern": "matches `{}`",
    "minItems": "at least {} items",
}
NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}


def render() -> str:
    """The whole page."""
    schema = RunConfig.model_json_schema()
    done: dict[str, str] = {}
    return "\n".join([HEAD, *_section("The top of the file", schema, schema["$defs"], "", done)])


def _section(
    title: str, model: dict[str, Any], defs: dict[str, Any], path: str, done: dict[str, str]
) -> Iterator[str]:
    """A heading, the model's description, the table of its keys, then the sections of what is below."""
    yield f"## {title}\n"
    if said := _prose(model.get("description", ""), path):
        yield said + "\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for key, field in model["properties"].items():
        default = _default(field, key in model.get("required", []))
        meaning = _cell(field.get("description", ""))
        yield f"| `{key}` | {_value(field, defs, _join(path, key), done)} | {default} | {meaning} |"
    yield ""
    for key, field in model["properties"].items():
        for name, at in _below(field, _join(path, key)):
            if name not in done:
                done[name] = at
                yield from _section(_title(at, defs[name]), defs[name], defs, at, done)


def _title(path: str, model: dict[str, Any]) -> str:
    tag = model["properties"].get("type")
    if tag is None:
        return f"`{path}`"
    tags = [tag["const"]] if "const" in tag else tag["enum"]
    return f"`{path}` with `type: {' | '.join(tags)}`"


def _below(field: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """(definition, dotted path) of each model that the field may hold."""
    if "$ref" in field:
        yield field["$ref"].rsplit("/", 1)[1], path
    for option in [*field.get("anyOf", []), *field.get("oneOf", [])]:
        yield from _below(option, path)
    if "items" in field:
        yield from _below(field["items"], f"{path}[]")


def _value(field: dict[str, Any], defs: dict[str, Any], path: str, done: dict[str, str]) -> str:
    """What may stand there, in words."""
    below = list(dict.fromkeys(_below(field, path)))
    if below:
        places = dict.fromkeys(f"`{done.get(name, at)}`" for name, at in below)
        word = "a list of " if "items" in field else ""
        return f"{word}{' or '.join(places)}, below"
    if "anyOf" in field:
        options = [option for option in field["anyOf"] if option.get("type") != "null"]
        return " or ".join(_value(option, defs, path, done) for option in options)
    if "enum" in field or "const" in field:
        return " or ".join(f"`{_yaml(choice)}`" for choice in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"a list of {_value(field['items'], defs, path, done)}"
    if field["type"] == "object":
        return "a mapping of names to text"
    limits = [text.format(_escaped(field[key])) for key, text in LIMITS.items() if key in field]
    return ", ".join([NAMES[field["type"]], *limits])


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = field.get("default")
    if default is None:
        return "none"
    if isinstance(default, dict | list) and default:
        return "as below" if isinstance(default, dict) else f"`{_yaml(default)}`"
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    """A value as one would write it in YAML."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value)


def _prose(description: str, path: str) -> str:
    """The model's description without the heading that it may repeat."""
    lines = " ".join(description.split()).removeprefix(f"`{path}:`").strip()
    return lines[:1].upper() + lines[1:]


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split()))


def _escaped(value: Any) -> str:
    return str(value).replace("|", "\\|")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
