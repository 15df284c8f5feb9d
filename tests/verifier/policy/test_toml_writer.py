"""Tests of the policy writer and of pinned policies."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import PolicyError
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.verifier.policy.appraisal_policy import PRESETS, VERIFIED_PLATFORMS, AppraisalPolicy
from attestkit.verifier.policy.rules import (
    REGISTERS,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
)
from attestkit.verifier.policy.toml_writer import pin, to_toml
from attestkit.verifier.result import AttestationResult, TcbStatus
from tests.verifier.policy.policy_samples import (
    APP_ID,
    COMPOSE_HASH,
    IMAGE_HASH,
    NITRO,
    NOW,
    SEPT_VE_DISABLE,
    SNP,
    TDX,
    app_info,
    authenticated,
    bare_claims,
    claims,
    events,
    register,
    result,
)

# -- pinned policies ---------------------------------------------------------------------------


def is_accepted(
    policy: AppraisalPolicy, attestation_result: AttestationResult, **changes: Any
) -> bool:
    """Return whether a policy accepts the evidence of a result with changed claims."""
    verified = authenticated(
        status=attestation_result.tcb.status, advisory_ids=attestation_result.advisory_ids
    )
    try:
        policy.appraise(
            replace(attestation_result.claims, **changes),
            verified,
            attestation_result.app_info,
            NOW,
        )
    except PolicyError:
        return False
    return True


def test_pin_of_td() -> None:
    """Image, app and settings are pinned; instance, device, TDX module and RTMR3 are not."""
    policy = pin(result())
    assert policy.accepted_statuses == AppraisalPolicy.default().accepted_statuses
    assert policy.platforms == {TDX}
    assert set(policy.reference_values.rules) == {
        *("mrtd", "rtmr0", "rtmr1", "rtmr2"),
        *("mr_signer_seam", "mr_config_id", "mr_owner", "mr_owner_config"),
    }
    assert policy.td_attributes == BitMask.exactly(SEPT_VE_DISABLE)
    assert policy.xfam is not None
    assert policy.app_id == {APP_ID}
    assert policy.compose_hash == {COMPOSE_HASH}
    assert policy.os_image_hash == {IMAGE_HASH}
    assert policy.key_provider == {KeyProvider(name="kms", id=b"\x30\x59")}
    assert {(event.name, event.payload) for event in policy.required_events} == {
        ("init-script-hash", register(0x15, 32)),
        ("gpu-policy-hash", register(0x6F, 32)),
        ("storage-fs", b"zfs"),
    }
    assert policy.instance_id is None
    assert policy.device_id is None


RESULTS = {
    "td": result(),
    "td, no boot": result(
        claims(events=events(("model", b""))[-1:]),
        None,
        app_info(app_id=b"", compose_hash=b"", instance_id=b"", key_provider_info=b""),
    ),
    "td, no events": result(claims(events=(), rtmr3=bytes(48))),
    "td, no image": result(claims(os_image_hash=b"")),
    "td, strange provider": result(None, None, app_info(key_provider_info=b"\xff")),
    "td, empty provider": result(None, None, app_info(key_provider_info=b'{"name":"","id":""}')),
    "bare quote": result(bare_claims(), None, None),
    "out of date": result(
        None, authenticated(status=TcbStatus.OUT_OF_DATE, advisory_ids=("INTEL-SA-00837",))
    ),
    "snp": result(claims(SNP)),
    "snp, no document": result(claims(SNP), None, None),
    "nitro": result(claims(NITRO), authenticated(status=None), app_info(app_id=b"")),
    "sgx": result(claims("sgx"), None, None),
}


@pytest.mark.parametrize("name", RESULTS)
def test_pin_accepts_its_evidence(name: str) -> None:
    """The policy accepts its evidence, also after a round trip through TOML."""
    evidence = RESULTS[name]
    policy = pin(evidence)
    assert is_accepted(policy, evidence)
    read = AppraisalPolicy.from_toml(to_toml(policy))
    assert read == policy
    assert is_accepted(read, evidence)


@pytest.mark.parametrize("name", RESULTS)
def test_pin_rejects_any_other_register(name: str) -> None:
    """A change of any pinned register is rejected."""
    evidence = RESULTS[name]
    policy = pin(evidence)
    assert policy.reference_values.rules
    for pinned in policy.reference_values.rules:
        for table in ("registers", "attributes"):
            current = dict(getattr(evidence.claims, table))
            if pinned in current:
                current[pinned] = b"\xee" * len(current[pinned])
                changes = {table: tuple(current.items())}
                assert not is_accepted(policy, evidence, **changes), pinned


def test_pin_omits_values_with_instance_id() -> None:
    """Values that depend on the instance id are pinned only if it is empty."""
    version_3 = claims(mr_config_id=b"\3" + register(1, 47))
    assert pin(result(version_3)).reference_values.mr_config_id is None
    anonymous = app_info(instance_id=b"")
    assert pin(result(version_3, None, anonymous)).reference_values.mr_config_id is not None
    assert pin(result(claims(SNP))).reference_values.host_data is None
    assert pin(result(claims(SNP), None, anonymous)).reference_values.host_data is not None


def test_pin_rtmr3_only_without_events() -> None:
    """RTMR3 is pinned only if its log has no events."""
    assert pin(RESULTS["td, no events"]).reference_values.rtmr3 == {bytes(48)}
    for name in ("td", "td, no boot", "bare quote"):
        assert pin(RESULTS[name]).reference_values.rtmr3 is None


def test_pin_omits_app_events() -> None:
    """Only boot events are pinned, not events of the same names by the app."""
    claimed = claims(events=events(("storage-fs", b"claimed")))
    assert {event.payload for event in pin(result(claimed)).required_events} == {
        *(register(0x15, 32), register(0x6F, 32), b"zfs")
    }
    unbooted = claims(events=tuple(each for each in events() if each.name != "system-ready"))
    assert pin(result(unbooted)).required_events == frozenset()


def test_pin_of_enclave_omits_app_id() -> None:
    """An enclave's app id is not signed, and therefore not pinned."""
    policy = pin(result(claims(NITRO), authenticated(status=None)))
    assert (policy.app_id, policy.compose_hash, policy.key_provider) == (None, None, None)
    assert set(policy.reference_values.rules) == {"pcr0", "pcr1", "pcr2", "pcr8"}


def test_pin_includes_status_of_evidence() -> None:
    """The status of the evidence is accepted, and visible in the file."""
    policy = pin(RESULTS["out of date"])
    assert TcbStatus.OUT_OF_DATE in policy.accepted_statuses
    assert '"OutOfDate"' in to_toml(policy)


# -- TOML --------------------------------------------------------------------------------------


EXPECTED_TEXT = {
    "acceptance": """\
# Appraisal policy. All rules must be met; delete a rule to drop it.
# Bytes are hex, in the order of the evidence. An unknown key is an error.

# Accepted TCB statuses of the platform.
accepted_statuses = [
  "UpToDate",
  "SWHardeningNeeded",
  "ConfigurationNeeded",
  "ConfigurationAndSWHardeningNeeded",
]

# Security advisories that may apply; "any", or a list of ids.
accepted_advisories = "any"

# Accepted platforms, of dstack-tdx, dstack-amd-sev-snp, dstack-nitro-enclave, sgx.
platforms = ["dstack-tdx"]

# Whether evidence under another root than the vendor's is rejected.
refuse_simulated = false

# Whether the document of a TD's MR_CONFIG_ID version 3 is required.
require_mr_config = false
""",
    "the app": f"""
# The application's id, 20 bytes, measured at boot.
app_id = "{"0a" * 20}"

# SHA-256 of the application's app-compose.json, measured at boot.
compose_hash = "{"0c" * 32}"

# Hash of the OS image that the registers must match, 32 bytes.
os_image_hash = "{"05" * 32}"
""",
    "registers": f"""
# Reference values. Several may be accepted: ["...", "..."].
[reference_values]
# initial contents of the TD: its firmware
mrtd = "{"11" * 48}"
# the virtual machine: number of processors, memory, devices, ACPI tables
rtmr0 = "{"20" * 48}"
# kernel
rtmr1 = "{"21" * 48}"
# kernel command line and initial file system
rtmr2 = "{"22" * 48}"
# signer of the TDX module; zero for Intel
mr_signer_seam = "{"00" * 48}"
# set by the owner at launch
mr_config_id = "01{"62" * 47}"
# set by the owner at launch
mr_owner = "{"63" * 48}"
# set by the owner at launch
mr_owner_config = "{"64" * 48}"
""",
    "bits": """
# Attributes of the TD, as in the evidence; the mask has the bits to compare.
[td_attributes]
mask = "ffffffffffffffff"
# SEPT_VE_DISABLE
value = "0000001000000000"

# CPU features that the TD may use, 8 bytes as in the evidence.
[xfam]
mask = "ffffffffffffffff"
# FP, SSE, AVX, AVX512, PK, AMX
value = "e702060000000000"
""",
    "the key provider": """
# Key provider of the application; id in hex.
[[key_provider]]
name = "kms"
id = "3059"
""",
    "events": f"""
# Runtime event that must be in the event log; payload in hex.
[[required_events]]
name = "gpu-policy-hash"
payload = "{"6f" * 32}"
during = "boot"

# Runtime event that must be in the event log; payload in hex.
[[required_events]]
name = "init-script-hash"
payload = "{"15" * 32}"
during = "boot"

# Runtime event that must be in the event log; payload in hex.
[[required_events]]
name = "storage-fs"
payload = "7a6673"
during = "boot"
""",
}


def test_to_toml_text() -> None:
    """The TOML has the expected text, with a comment for each rule."""
    text = to_toml(pin(result(None, None, app_info(instance_id=b""))))
    for part, expected in EXPECTED_TEXT.items():
        assert text.startswith(expected), part
        text = text.removeprefix(expected)
    assert text == ""


@pytest.mark.parametrize("preset", PRESETS)
def test_to_toml_writes_presets_in_full(preset: str) -> None:
    """The file lists statuses instead of a preset, whose meaning may change."""
    text = to_toml(PRESETS[preset]())
    assert "preset" not in text
    assert AppraisalPolicy.from_toml(text) == PRESETS[preset]()


# -- any policy --------------------------------------------------------------------------------

TEXT = st.text(min_size=1, max_size=12).filter(
    lambda text: not any("\ud800" <= each <= "\udfff" for each in text)
)
ODD_TEXT = TEXT | st.sampled_from(
    ['"', "\\", "\n", "\x7f\x00\x1f", "a.b", "é\u2028", "'''", '"""', "#"]
)


def values(size: int) -> st.SearchStrategy[Any]:
    """Return a strategy for None or accepted values of a size."""
    return st.none() | st.sets(st.binary(min_size=size, max_size=size), min_size=1, max_size=3)


def masks() -> st.SearchStrategy[BitMask | None]:
    """Return a strategy for None or bit masks that leave debug bits alone."""
    bits = st.integers(0, 2**64 - 1)
    return st.none() | st.tuples(bits, bits).map(
        lambda pair: BitMask(
            must_be_set=pair[0] & pair[1] & ~0xFF,
            must_be_clear=~pair[0] & pair[1] | 1 & ~pair[0] | 1,
        )
    )


ADVISORIES = st.sampled_from([f"INTEL-SA-{number:05}" for number in range(6)])
PERIODS = st.none() | st.timedeltas(timedelta(), timedelta(36_525)).map(
    lambda period: timedelta(period.days, period.seconds) if period.days < 36_525 else period
)
EVENTS = st.builds(
    RequiredEvent,
    name=ODD_TEXT | st.sampled_from(sorted(RESERVED_NAMES)),
    payload=st.none() | st.binary(max_size=9),
    during=st.sampled_from([None, "boot"]),
) | st.builds(RequiredEvent, name=ODD_TEXT, digest=st.binary(min_size=48, max_size=48))
PROVIDERS = st.builds(KeyProvider, name=ODD_TEXT, id=st.none() | st.binary(min_size=1, max_size=9))


@st.composite
def policies(draw: st.DrawFn) -> AppraisalPolicy:
    """Draw any policy."""
    graceful = draw(st.booleans())
    statuses = [each for each in TcbStatus if each is not TcbStatus.REVOKED]
    if graceful:
        statuses = [each for each in statuses if "OutOfDate" not in each]
    platform = draw(st.sampled_from(VERIFIED_PLATFORMS))
    names = [name for name, (owner, *_) in REGISTERS.items() if owner == platform]
    chosen = draw(st.sets(st.sampled_from(names), max_size=4))
    sizes = {"app_id": 20, "compose_hash": 32, "instance_id": 20, "os_image_hash": 32}
    refused = draw(st.sets(ADVISORIES, max_size=2))
    accepted = draw(st.none() | st.sets(ADVISORIES, max_size=3))
    return AppraisalPolicy(
        accepted_statuses=draw(st.sets(st.sampled_from(statuses), min_size=1)),
        accepted_advisories=None if accepted is None else accepted - refused,
        refused_advisories=refused,
        platform_grace_period=draw(PERIODS) if graceful else None,
        qe_grace_period=draw(PERIODS) if graceful else None,
        minimum_evaluation_data_number=draw(st.none() | st.integers(0, 65_535)),
        minimum_svns=draw(st.dictionaries(ODD_TEXT, st.integers(0, 65_535), max_size=3)).items(),
        platforms={platform, *draw(st.sets(st.sampled_from(VERIFIED_PLATFORMS)))},
        refuse_simulated=draw(st.booleans()),
        require_mr_config=draw(st.booleans()),
        reference_values=ReferenceValues(
            **{name: draw(values(REGISTERS[name][1])) for name in sorted(chosen)}
        ),
        td_attributes=draw(masks()) if platform == TDX else None,
        xfam=draw(masks()) if platform == TDX else None,
        device_id=draw(values(32)),
        key_provider=draw(st.none() | st.sets(PROVIDERS, min_size=1, max_size=3)),
        required_events=draw(st.sets(EVENTS, max_size=3)),
        **{name: draw(values(size)) for name, size in sizes.items()},
    )


@settings(deadline=None)  # shared machines are slow
@given(policy=policies())
def test_to_toml_any_policy_round_trip(policy: AppraisalPolicy) -> None:
    """Any policy equals itself after a round trip through TOML."""
    assert AppraisalPolicy.from_toml(to_toml(policy)) == policy
    assert AppraisalPolicy.from_toml(to_toml(policy).encode()) == policy
