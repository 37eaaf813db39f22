"""YAML file -> overrides -> frozen `RunConfig`. Errors name the file, the line and the nearest valid key."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tunewright.config.base import Config
from tunewright.config.run import RunConfig
from tunewright.errors import ConfigError

Loc = tuple[str | int, ...]


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which PyYAML alone would keep the last in silence.

    Keys are text: PyYAML reads `on` as true and `1` as a number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "[...]"
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{shown}` is not text; put it in quotes", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key_node.value}` is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_yaml_file(path: Path) -> tuple[dict[str, Any], dict[Loc, int]]:
    """A YAML mapping and the line (from 1) of each of its keys and items.

    Raises:
        ConfigError: not there, not YAML, or not a mapping; names file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = dict(_lines(node, ())) if node else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply, or an alias stands inside itself") from None
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {type(data).__name__}"
        raise ConfigError(f"{path}: expected `key: value` lines, found {found}")
    return data, lines


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated run that `path` and the `a.b=c` overrides describe.

    Relative paths of sources and of the sweep's space are looked up beside the YAML file, then in
    its parent folders, so that a run does not depend on the working directory.

    Raises:
        ConfigError: every problem of the file, one a line.
    """
    path = Path(path)
    data, lines = load_yaml_file(path)
    given = {}
    for override in overrides:
        loc = _apply_override(data, override)
        given[loc] = f"--set {override}"
    _anchor_paths(data, path.resolve().parent)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        problems = [_explain(RunConfig, e, path, lines, given) for e in errors if not _is_echo(e, errors)]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None


def _is_echo(error: Any, errors: Sequence[Any]) -> bool:
    """Whether a list is called too short only because pydantic leaves out items that have errors."""
    loc = error["loc"]
    return error["type"] == "too_short" and any(
        len(other["loc"]) > len(loc) and other["loc"][: len(loc)] == loc for other in errors
    )


def resolved_json(config: BaseModel) -> str:
    """The configuration with every default filled in, as stable JSON."""
    return json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True)


def _lines(node: yaml.Node, loc: Loc) -> Iterator[tuple[Loc, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*loc, key.value)
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*loc, index), value.start_mark.line + 1
            yield from _lines(value, (*loc, index))


def _apply_override(data: dict[str, Any], override: str) -> Loc:
    """Set one `a.b.0.c=value` in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as train.learning_rate=1e-4")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    parts: list[str | int] = [int(p) if p.isdecimal() else p for p in key.strip().split(".")]
    target: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(target, list):
            if not isinstance(part, int) or part >= len(target):
                raise ConfigError(f"--set {override}: `{part}` is not an item 0..{len(target) - 1}")
        elif not isinstance(target, dict):
            raise ConfigError(f"--set {override}: `{'.'.join(map(str, parts[:depth]))}` has no keys")
        elif not last and target.get(part) is None:
            target[part] = {}
        if last:
            target[part] = value
        else:
            target = target[part]
    return tuple(parts)


def _anchor_paths(data: dict[str, Any], folder: Path) -> None:
    """Make relative paths of existing files absolute; what is not found stays, for its own error."""
    sources = [task.get("source") for task in _mappings(data.get("evaluate"), "tasks")]
    for section in _data_sections(data):
        sources += [*_items(section, "sources"), *_items(section.get("contamination"), "against")]
        _anchor(section, "chat_template", folder)
        _anchor_key(section, folder)
    for source in sources:
        if isinstance(source, dict):
            _anchor(source, "path", folder)
            _anchor(source, "dataset", folder)
    for name, key in (("sweep", "space"), ("base", "model")):
        if isinstance(data.get(name), dict):
            _anchor(data[name], key, folder)


def _data_sections(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Every `data:` there is: the run's, its stages', and their tasks'."""
    trainings = [data, *_mappings(data, "stages")]
    holders = trainings + [task for training in trainings for task in _mappings(training, "tasks")]
    return [holder["data"] for holder in holders if isinstance(holder.get("data"), dict)]


def _anchor_key(data_section: dict[str, Any], folder: Path) -> None:
    """Make the path in `encryption.key: file:PATH` absolute."""
    encryption = data_section.get("encryption")
    if isinstance(encryption, dict) and str(encryption.get("key")).startswith("file:"):
        path = Path(str(encryption["key"]).removeprefix("file:")).expanduser()
        data_section["encryption"] = {**encryption, "key": f"file:{folder / path}"}


def _items(section: Any, key: str) -> list[Any]:
    found = section.get(key) if isinstance(section, dict) else None
    return found if isinstance(found, list) else []


def _mappings(section: Any, key: str) -> list[dict[str, Any]]:
    return [item for item in _items(section, key) if isinstance(item, dict)]


def _anchor(mapping: dict[str, Any], key: str, folder: Path) -> None:
    value = mapping.get(key)
    if not isinstance(value, str) or not value or Path(value).is_absolute() or "://" in value:
        return
    if (key, value) == ("model", "tiny"):
        return
    for root in (folder, *folder.parents):
        pattern = _before_pattern(value)
        if (root / pattern).exists():
            mapping[key] = str(root / value)
            return


def _before_pattern(path: str) -> str:
    """The folders of a glob that are named in full: `data/2024-*/x.jsonl` -> `data`."""
    parts = path.split("/")
    named = next((i for i, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts))
    return "/".join(parts[:named]) or "."


def _explain(
    model: type[Config], error: Any, path: Path, lines: dict[Loc, int], given: dict[Loc, str]
) -> str:
    """One sentence for one pydantic error: where, what, and the nearest valid key."""
    loc = _without_tags(error["loc"], lines, given)
    dotted = ".".join(map(str, loc)) or "the file"
    where = next((text for at, text in given.items() if at[: len(loc)] == loc or loc[: len(at)] == at), None)
    if where is None:
        known = loc
        while known and known not in lines:
            known = known[:-1]
        where = f"{path}:{lines[known]}" if known in lines else str(path)
    if error["type"] == "extra_forbidden":
        valid = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys: {', '.join(sorted(valid))}"
        return f"{where}: unknown key `{dotted}`; {hint}"
    if error["type"] == "missing":
        return f"{where}: `{dotted}` is required"
    message = error["msg"].removeprefix("Value error, ")
    shown = ""
    if error["type"] not in ("value_error", "union_tag_not_found") and not isinstance(
        error["input"], dict | list
    ):
        shown = f" (found {error['input']!r})"
    return f"{where}: `{dotted}`: {message}{shown}"


def _without_tags(loc: Loc, lines: dict[Loc, int], given: dict[Loc, str]) -> Loc:
    """The error's location as the user wrote it: pydantic adds the tag of each union it chose."""
    known = set(lines) | {at[:n] for at in given for n in range(len(at) + 1)}
    out: Loc = ()
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if (*out, part) in known or last or isinstance(part, int):
            out = (*out, part)
    return out


def _fields_at(model: type[BaseModel], loc: Loc) -> set[str]:
    """Names of the fields of the model that stands at `loc` below `model`."""
    kinds: list[Any] = [model]
    for part in loc:
        below: list[Any] = []
        for kind in kinds:
            if isinstance(part, int):
                below.append(kind)
            elif part in kind.model_fields:
                below += _models_in(kind.model_fields[part].annotation)
            elif part in _tags(kind) or any(part in _tags(f.annotation) for f in kind.model_fields.values()):
                below.append(kind)
        kinds = below or kinds
    return {name for kind in kinds for name in kind.model_fields}


def _tags(annotation: Any) -> set[str]:
    return {
        str(tag)
        for kind in _models_in(annotation)
        if "type" in kind.model_fields
        for tag in typing.get_args(kind.model_fields["type"].annotation)
    }


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_args(annotation):
        return [m for arg in typing.get_args(annotation) for m in _models_in(arg)]
    return []
