"""Files of the host-shared directory."""

import json
from pathlib import Path


def write_app_compose(shared: Path, **fields: object) -> bytes:
    """Write an app-compose.json, and return it."""
    text = {"manifest_version": 2, "name": "app", "runner": "bash", **fields}
    data = json.dumps(text).encode()
    (shared / "app-compose.json").write_bytes(data)
    return data


def write_sys_config(shared: Path, vm_config: str = "{}", **fields: object) -> None:
    """Write a sys-config."""
    text = json.dumps({"vm_config": vm_config, **fields})
    (shared / ".sys-config.json").write_text(text)
