"""Files as a host puts them into the folder that it shares."""

import json
from pathlib import Path


def app_compose(shared: Path, **fields: object) -> bytes:
    """Have the host share an app-compose.json, and return it."""
    text = {"manifest_version": 2, "name": "app", "runner": "bash", **fields}
    data = json.dumps(text).encode()
    (shared / "app-compose.json").write_bytes(data)
    return data


def sys_config(shared: Path, vm_config: str = "{}", **fields: object) -> None:
    """Have the host share a sys-config."""
    text = json.dumps({"vm_config": vm_config, **fields})
    (shared / ".sys-config.json").write_text(text)
