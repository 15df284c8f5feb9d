"""Attempts with files of auth-simple, which look stricter than they are."""

import json
from typing import Any, Final

from attestkit.errors import (
    ConfigError,
)
from attestkit.kms.release.auth_simple import AuthSimpleConfig
from attestkit.kms.release.authorization import (
    BootInfo,
    Decision,
    Role,
)
from tests.attacks.attempts import Surfaces, bound
from tests.kms.release.boot_infos import APP, boot_info

attacks = Surfaces("kms")

DD: Final = "dd" * 32
RULES: Final[dict[str, Any]] = {"composeHashes": [DD], "allowAnyDevice": True}
FILE: Final[dict[str, Any]] = {"osImages": ["bb" * 32], "apps": {APP.hex(): RULES}}


def decide(boot: BootInfo | None = None, role: Role = "app", **changes: Any) -> Decision:
    """Return the decision of a file."""
    config = AuthSimpleConfig.from_json(json.dumps({**FILE, **changes}))
    return config.decide(role, boot or boot_info())


assert decide().is_allowed


def refused(reason: str, boot: BootInfo | None = None, role: Role = "app", **changes: Any) -> None:
    """Assert that a file refuses a guest."""
    found = decide(boot, role, **changes)
    assert not found.is_allowed
    assert found.reason.startswith(reason)


def with_app(**rules: Any) -> dict[str, Any]:
    """Return other rules about the app."""
    return {APP.hex(): {**RULES, **rules}}


FILES: Final[dict[str, Any]] = {
    "an image that is not verified, where one is empty": bound(
        refused, "OS image", boot_info(os_image_hash=b""), osImages=["", "0x"]
    ),
    "a guest without a compose hash, where one is empty": bound(
        refused, "compose hash", boot_info(compose_hash=b""), apps=with_app(composeHashes=[""])
    ),
    "a device without an id, where one is empty": bound(
        refused,
        "app is not allowed",
        boot_info(device_id=b""),
        apps=with_app(devices=[""], allowAnyDevice=False),
    ),
    "an app without an id, where one is empty": bound(
        refused, "app not registered", boot_info(app_id=b"x"), apps={"": RULES}
    ),
    "a hash with a space": bound(refused, "compose hash", apps=with_app(composeHashes=[f"{DD} "])),
    "a hash that begins like it": bound(
        refused, "compose hash", apps=with_app(composeHashes=["dd" * 31])
    ),
    "a hash with two prefixes": bound(
        refused, "compose hash", apps=with_app(composeHashes=["0x0x" + "dd" * 32])
    ),
    "a hash of letters of another script": bound(
        refused, "compose hash", apps=with_app(composeHashes=["\uff44\uff44" * 32])
    ),
    "a status in other letters": bound(
        refused, "TCB status", boot_info(tcb_status="uptodate"), allowedTcbStatuses=["UpToDate"]
    ),
    "no status at all": bound(refused, "TCB status", boot_info(tcb_status="")),
    "no accepted status": bound(refused, "TCB status", allowedTcbStatuses=[]),
    "an advisory": bound(refused, "advisory ID", boot_info(advisory_ids=("INTEL-SA-1",))),
    "one advisory of two": bound(
        refused,
        "advisory ID",
        boot_info(advisory_ids=("A", "B")),
        allowedAdvisoryIds=["A"],
    ),
    "a device of another app": bound(
        refused, "app is not allowed", apps=with_app(devices=["00" * 32], allowAnyDevice=False)
    ),
    "an app as another KMS": bound(refused, "aggregated MR", role="kms"),
    "another KMS without measurements, where one is empty": bound(
        refused,
        "aggregated MR",
        boot_info(mr_aggregated=b""),
        role="kms",
        kms={"mrAggregated": [""], "allowAnyDevice": True},
    ),
}
for _name, _run in FILES.items():
    attacks.add("confuse", f"file that allows {_name}", _run)

MALFORMED: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "a key in other letters": ({"OsImages": ["bb" * 32]}, "unknown_key"),
    "a key that is misspelt": ({"allowedTCBStatuses": ["UpToDate"]}, "unknown_key"),
    "a key of an app that is misspelt": ({"apps": with_app(device=["00" * 32])}, "unknown_key"),
    "a flag as text": ({"apps": with_app(allowAnyDevice="false")}, "wrong_type"),
    "a flag as a number": ({"apps": with_app(allowAnyDevice=0)}, "wrong_type"),
    "a hash in place of a list": ({"osImages": "bb" * 32}, "wrong_type"),
    "an app twice, with a prefix": (
        {"apps": {APP.hex(): RULES, f"0x{APP.hex()}": RULES}},
        "duplicate",
    ),
    "an app twice, in capitals": (
        {"apps": {APP.hex(): RULES, APP.hex().upper(): RULES}},
        "duplicate",
    ),
    "apps as a list": ({"apps": [RULES]}, "wrong_type"),
}
for _name, (_changes, _reason) in MALFORMED.items():
    attacks.add("confuse", f"file with {_name}", bound(decide, **_changes), ConfigError, _reason)


@attacks.attempt("confuse", ConfigError, "duplicate")
def file_with_an_app_twice() -> object:
    """Of two members of one name a text editor shows the first, a parser takes the last."""
    text = json.dumps(FILE)
    one = f'"{APP.hex()}": {json.dumps(RULES)}'
    return AuthSimpleConfig.from_json(text.replace(one, f"{one}, {one}"))


@attacks.attempt("exhaust", ConfigError, "too_large")
def file_of_a_megabyte() -> object:
    """White space without end."""
    return AuthSimpleConfig.from_json(json.dumps(FILE) + " " * (1 << 20))
