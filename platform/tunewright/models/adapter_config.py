"""PEFT's adapter_config.json: read, and its base named so that the name means something elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunewright.artifacts import Artifact, write_json
from tunewright.errors import ModelError
from tunewright.models.base import is_hub_id

NAME = "adapter_config.json"


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """What adapter_config.json in a folder says.

    Raises:
        ModelError: it is not there or not a JSON object.
    """
    path = adapter / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as an adapter's configuration: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}, not the settings of an adapter")
    return found


def name_base(adapter: Path, base: Artifact) -> None:
    """Write into an adapter's settings which base it is of, as somebody elsewhere would find it.

    A Hugging Face id with its revision, which PEFT's `AutoPeftModel` fetches; else the folder's own
    name, for a person: where a folder lay on the machine that trained means nothing on another. PEFT's
    README.md, a form that nobody filled in, goes: it names that place too.
    """
    settings = read_adapter_config(adapter)
    model, revision = str(base.facts["model"]), base.manifest.config.get("revision")
    if revision is None or not is_hub_id(model):  # a hub id has a revision, and `models/mine` is a folder
        model, revision = Path(model).name, None
    settings |= {"base_model_name_or_path": model, "revision": revision}
    write_json(adapter / NAME, settings)
    (adapter / "README.md").unlink(missing_ok=True)
