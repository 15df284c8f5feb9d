"""A VM configuration has one value for each member, in the evidence and beside it."""

import json

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.vm_config import VmConfig, choose_config
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import intel

CONFIG = '{"cpu_count":2,"hugepages":false,"os_image_hash":"ab","numa_nodes":[{"a":1},2]}'


@every_case(
    "supplied",
    [
        "",
        CONFIG,
        CONFIG.replace(":", " : "),
        '{"numa_nodes":[{"a":1.0},2],"os_image_hash":"ab","hugepages":false,"cpu_count":2e0}',
        json.dumps({"vm_config": CONFIG, "pccs_url": "https://pccs"}),
    ],
)
def test_choose_config_accepts_equal_values(supplied: str) -> None:
    """Numbers are compared by value, and members in any order; the embedded text is used."""
    assert choose_config(CONFIG, supplied) == CONFIG


@every_case(
    "change",
    [
        ("2", "3"),
        ("false", "0"),
        ("false", "null"),
        ('"ab"', '"AB"'),
        (',"numa_nodes"', ',"later":1,"numa_nodes"'),
        ('"hugepages":false,', ""),
        ("},2]", "},2,3]"),
        ("},2]", "}]"),
        ('{"a":1}', '{"a":true}'),
        ('{"a":1}', '{"a":"1"}'),
        ('{"a":1}', "[]"),
        (CONFIG, "{}"),
        (CONFIG, json.dumps({"vm_config": CONFIG.replace("2", "3")})),
        (CONFIG, json.dumps({"vm_config": CONFIG, "mr_config": "x"})),
    ],
)
def test_choose_config_refuses_other_values(change: tuple[str, str]) -> None:
    """A copy beside the evidence must not have another value; a boolean is not a number."""
    other = CONFIG.replace(*change)
    assert other != CONFIG
    with raises(FormatError, "inconsistent"):
        choose_config(CONFIG, other)
    if "mr_config" in other:  # the embedded one has more
        assert choose_config(other, CONFIG) == other
        return
    with raises(FormatError, "inconsistent"):
        choose_config(other, CONFIG)


def test_choose_config_uses_the_only_one() -> None:
    """Without one of the two, the other is used as it is."""
    assert choose_config("", CONFIG) == choose_config(CONFIG, "") == CONFIG
    assert choose_config("", "") == ""


@every_case("malformed", ["x", "[]", '{"vm_config":"x"}', "[" * 300])
def test_choose_config_refuses_malformed_copy(malformed: str) -> None:
    """A copy that cannot be read is not ignored."""
    with pytest.raises(FormatError):
        choose_config(CONFIG, malformed)


@every_case(
    ("outside", "accepted"),
    [
        ({"host": "x"}, True),
        ({"os_image_hash": "ab", "cpu_count": 2.0}, True),
        ({"os_image_hash": "cd"}, False),
        ({"os_image_hash": None}, False),
        ({"hugepages": 0}, False),
        ({"numa_nodes": []}, False),
    ],
)
def test_system_configuration_has_no_competing_member(
    outside: dict[str, object], *, accepted: bool
) -> None:
    """A member of both a system configuration and its vm_config must have one value."""
    text = json.dumps({**outside, "vm_config": CONFIG})
    if accepted:
        assert VmConfig.parse(text).os_image_hash == b"\xab"
    else:
        with raises(FormatError, "inconsistent", part=next(iter(outside))):
            VmConfig.parse(text)


def test_vm_config_is_not_nested_twice() -> None:
    """A vm_config inside a vm_config has another value than the one around it."""
    with raises(FormatError, "inconsistent"):
        VmConfig.parse(json.dumps({"vm_config": json.dumps({"vm_config": CONFIG})}))


def test_evidence_takes_configuration_from_beside_it_only_if_it_has_none() -> None:
    """The copy in the evidence comes first, and another one beside it is refused."""
    evidence = intel.evidence()
    assert evidence.with_vm_config("") is evidence
    assert evidence.with_vm_config(evidence.config) is evidence
    with raises(FormatError, "inconsistent"):
        evidence.with_vm_config("{}")
    platform, stack = evidence.evidence
    without = Attestation(Evidence(platform, stack._replace(config="")))
    assert without.with_vm_config(evidence.config) == evidence
    assert without.with_vm_config("").config == ""


def test_agent_response_with_other_configuration_is_refused() -> None:
    """Evidence and the member vm_config of one response must agree."""
    evidence = intel.evidence()
    fields = {"attestation": evidence.to_bytes().hex(), "vm_config": evidence.config}
    assert Attestation.from_agent_response(fields) == evidence
    with raises(FormatError, "inconsistent"):
        Attestation.from_agent_response(fields | {"vm_config": CONFIG})
