"""The documented schemas of `--json`, as validators."""

import functools
import json
from pathlib import Path
from typing import Any, Final

import jsonschema_rs

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "schemas"
_BASE: Final = "https://schemas.invalid/"  # schemas refer to each other by file name


@functools.cache
def read() -> dict[str, Any]:
    """Return all schemas by command."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


@functools.cache
def _validator(command: str) -> jsonschema_rs.Draft202012Validator:
    resources = [(f"{_BASE}{name}.json", schema) for name, schema in read().items()]
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"{_BASE}{command}.json"},
        registry=jsonschema_rs.Registry(resources),
        validate_formats=True,
    )


def check(command: str, text: str) -> Any:
    """Validate `--json` output by its schema; return the parsed value."""
    value = json.loads(text)
    _validator(command).validate(value)
    return value
