"""Every entry of guest_v1.json is used: its groups, their number of entries, and their tests."""

from pathlib import Path
from typing import Final

from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

# Group: entries, and the tests that read each of them. A row is one entry, and so is a value that
# is not in a list of rows.
USED: Final = {
    "constants": (5, ["keys/test_v1_keys.py"]),
    "roots": (8, ["keys/test_v1_keys.py", "serve/services/test_get_key_v1.py"]),
    "keys": (25, ["keys/test_v1_keys.py", "serve/services/test_get_key_v1.py"]),
    "fixture": (5 + 6, ["keys/test_v1_keys.py", "serve/services/test_get_key_v1.py"]),
    "v0": (4 + 2, ["keys/test_v1_keys.py"]),
    "chains": (21, ["keys/test_key_chain.py"]),
    "wire": (23, ["serve/rpc/test_wire_v1.py"]),
    "errors": (
        20,
        ["serve/services/test_guest_v1.py", "serve/services/test_dstack_guest.py"],
    ),
    "routes": (26, ["serve/listeners/test_mounts.py"]),
    "app_info": (4, ["attestation/test_app_info.py", "ra_tls/test_certificate.py"]),
    "tdx_measurement": (4, ["attestation/launch/test_tdx.py"]),
    "health_file": (14, ["serve/health/test_status_file.py"]),
    "containers": (9, ["serve/health/test_containers.py"]),
    "attest": (1 + 5, ["verifier/test_generations.py", "serve/services/test_attest_v1.py"]),
}
ENTRIES: Final = 182
WORDS: Final = {"description", "conventions"}  # text for readers


def count(group: object) -> int:
    """Return the number of entries of a group: its rows, and its values outside of rows."""
    if isinstance(group, dict):
        return sum(len(one) if isinstance(one, list) else 1 for one in group.values())
    assert isinstance(group, list)
    return len(group)


@needs_shared
def test_every_group_has_its_tests() -> None:
    """A new group or entry of the vectors fails here until a test reads it."""
    vectors = load("guest_v1.json")
    assert vectors.keys() == USED.keys() | WORDS
    assert {name: count(vectors[name]) for name in USED} == {
        name: number for name, (number, _) in USED.items()
    }
    assert sum(number for number, _ in USED.values()) == ENTRIES


@every_case("group", USED)
def test_tests_of_group_read_it(group: str) -> None:
    """The named tests have the name of the group."""
    for name in USED[group][1]:
        text = (Path(__file__).parents[1] / name).read_text()
        assert "guest_v1.json" in text
        assert f'"{group}"' in text
