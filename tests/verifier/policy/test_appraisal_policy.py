"""A policy accepts what its rules say and nothing else, and says why."""

import hashlib
import pickle
from dataclasses import FrozenInstanceError, fields
from datetime import datetime, timedelta
from typing import Any

import pytest

from attestkit.errors import PolicyError, UsageError
from attestkit.verifier.policy.appraisal_policy import (
    PRESETS,
    VERIFIED_PLATFORMS,
    AppraisalPolicy,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
)
from attestkit.verifier.policy.toml_writer import pin
from attestkit.verifier.result import TcbStatus
from tests.untyped import untyped
from tests.verifier.policy.policy_samples import (
    APP_ID,
    COMPOSE_HASH,
    IMAGE_HASH,
    INSTANCE_ID,
    NITRO,
    PPID,
    SGX,
    SNP,
    TDX,
    app_info,
    authenticated,
    bare_claims,
    claims,
    judged,
    refused,
    register,
    result,
    rules,
)

PRESET_TABLE = {
    "strict": {"UpToDate"},
    "default": {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
    },
    "development": {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
    },
}
OTHER_20, OTHER_32 = b"\xee" * 20, b"\xee" * 32


# -- presets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", TcbStatus)
@pytest.mark.parametrize("preset", PRESET_TABLE)
def test_presets(preset: str, status: TcbStatus) -> None:
    """Each preset accepts the statuses of its table; the text of a refusal names what it wants."""
    policy, word = PRESETS[preset](), authenticated(status=status)
    if status.value in PRESET_TABLE[preset]:
        assert f"TCB status {status} is accepted" in judged(policy, None, word)
        return
    text = refused("tcb_status", policy, None, word)
    assert text.startswith(f"TCB status {status} is not accepted, want UpToDate")
    assert text.endswith("take a policy that accepts this status")


def test_the_table_of_the_documentation() -> None:
    """The table in the module's docstring is what the presets do."""
    from attestkit.verifier.policy import appraisal_policy

    assert appraisal_policy.__doc__ is not None
    rows = [
        line.strip("|").split("|") for line in appraisal_policy.__doc__.splitlines() if "|" in line
    ]
    told = {cell[0].strip(): [one.strip() for one in cell[1:]] for cell in rows[2:]}
    assert told.keys() == {status.value for status in TcbStatus}
    for status, cells in told.items():
        for preset, cell in zip(PRESET_TABLE, cells, strict=True):
            assert (cell == "yes") == (status in PRESET_TABLE[preset]), (status, preset)


def test_presets_ask_for_nothing_else() -> None:
    """Evidence of any platform passes the presets, with a step for what was judged."""
    for platform in VERIFIED_PLATFORMS:
        status = None if platform == NITRO else TcbStatus.UP_TO_DATE
        for preset in PRESETS.values():
            steps = judged(preset(), claims(platform), authenticated(status=status), None)
            assert f"platform {platform} is accepted" in steps
            assert all(steps)


def test_strict_takes_no_advisory() -> None:
    """Only strict refuses advisories on a platform that is up to date."""
    word = authenticated(advisory_ids=("INTEL-SA-00837",))
    assert "INTEL-SA-00837" in refused("advisory", AppraisalPolicy.strict(), None, word)
    steps = judged(AppraisalPolicy.default(), None, word)
    assert "security advisories INTEL-SA-00837 are accepted" in steps


# -- platform and debug ------------------------------------------------------------------------


def test_platforms() -> None:
    """A platform that is not among the accepted ones is refused by name."""
    text = refused("platform", rules(platforms=(SNP, SGX)))
    assert "evidence of dstack-tdx is not accepted, want dstack-amd-sev-snp or sgx" in text
    assert judged(rules(platforms={TDX}))


def test_a_platform_that_nobody_verifies() -> None:
    """Every preset refuses it, whatever came before."""
    strange = claims()._replace(platform="dstack-gcp-tdx")
    refused("platform", AppraisalPolicy.development(), strange)


@pytest.mark.parametrize(
    ("platform", "reason", "changed"),
    [
        (TDX, "td_debug", {"td_attributes": bytes.fromhex("0100001000000000")}),
        (TDX, "td_debug", {"td_attributes": bytes.fromhex("8000001000000000")}),
        (TDX, "td_debug", {"td_attributes": None}),
        (SNP, "debug", {"policy": (0xB0000).to_bytes(8, "little")}),
        (SNP, "debug", {"policy": None}),
        (SGX, "debug", {"attributes": bytes.fromhex("0700000000000000e700000000000000")}),
        (SGX, "debug", {"attributes": None}),
        (NITRO, "debug", {"pcr0": bytes(48), "pcr1": bytes(48), "pcr2": bytes(48)}),
        (NITRO, "debug", {"pcr0": None, "pcr1": None, "pcr2": None}),
    ],
)
def test_debug_is_refused_everywhere(platform: str, reason: str, changed: dict[str, Any]) -> None:
    """A guest in debug mode, or one that does not say, fails every preset."""
    word = authenticated(status=None if platform == NITRO else TcbStatus.UP_TO_DATE)
    for preset in PRESETS.values():
        text = refused(reason, preset(), claims(platform, **changed), word)
        assert "debug mode" in text


def test_simulated() -> None:
    """A handed-in root is taken unless the policy refuses it, and then also when nobody tells."""
    for simulated in (True, False, None):
        assert judged(AppraisalPolicy.strict(), simulated=simulated)
    policy = rules(refuse_simulated=True)
    assert "the evidence leads to its platform's maker" in judged(policy, simulated=False)
    refused("simulated", policy, simulated=True)
    refused("simulated", policy, simulated=None)


# -- who the app is ----------------------------------------------------------------------------


def test_accepted_identity() -> None:
    """Evidence that is the app which the policy names passes, one step for each rule."""
    policy = rules(
        app_id=(APP_ID, OTHER_20),
        compose_hash={COMPOSE_HASH},
        instance_id=[INSTANCE_ID],
        os_image_hash=(IMAGE_HASH,),
        reference_values=ReferenceValues(rtmr0=(register(0x20),)),
        device_id=(hashlib.sha256(PPID).digest(),),
        key_provider=(KeyProvider(name="kms"),),
        required_events=(RequiredEvent(name="model"),),
    )
    steps = judged(policy)
    for step in (
        f"app_id {APP_ID.hex()} is accepted",
        f"compose_hash {COMPOSE_HASH.hex()} is accepted",
        f"instance_id {INSTANCE_ID.hex()} is accepted",
        f"OS image {IMAGE_HASH.hex()} is accepted",
        f"device {hashlib.sha256(PPID).hexdigest()} is accepted",
        "the key provider is kms",
        "the log has event 'model'",
    ):
        assert step in steps
    assert not any("caution" in step for step in steps)


@pytest.mark.parametrize(
    ("name", "have", "other"),
    [
        ("app_id", APP_ID, OTHER_20),
        ("compose_hash", COMPOSE_HASH, OTHER_32),
        ("instance_id", INSTANCE_ID, OTHER_20),
    ],
)
def test_another_app(name: str, have: bytes, other: bytes) -> None:
    """Another app is refused with both values."""
    text = refused(name, rules(**{name: (other,)}))
    assert f"{name} is {have.hex()}, want {other.hex()}" in text
    assert f"accept this one in {name}" in text


IDENTITY = {
    "app_id": ("app_id", (APP_ID,)),
    "compose_hash": ("compose_hash", (COMPOSE_HASH,)),
    "instance_id": ("instance_id", (INSTANCE_ID,)),
    "key_provider": ("key_provider_info", (KeyProvider(name="kms"),)),
}


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_that_was_not_measured(name: str) -> None:
    """A guest without boot events, or a log that explains nothing, has no identity."""
    field, wanted = IDENTITY[name]
    policy = rules(**{name: wanted})
    assert judged(policy)
    text = refused(name, policy, None, None, app_info(**{field: b""}))
    assert "did not measure it before system-ready" in text
    refused(name, policy, claims(event_registers=(0, 1, 2)))


@pytest.mark.parametrize("name", IDENTITY)
def test_a_bare_quote_names_no_app(name: str) -> None:
    """A policy that asks for an app refuses a bare quote and says why."""
    policy = rules(**{name: IDENTITY[name][1]})
    text = refused(name, policy, bare_claims(), None, None)
    assert f"{name} is asked for" in text
    assert "a bare quote has no log that says it; ask the attester for whole evidence" in text


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_on_other_platforms(name: str) -> None:
    """SEV-SNP's sealed document names the app; an enclave has no identity but its image."""
    policy = rules(**{name: IDENTITY[name][1]})
    assert judged(policy, claims(SNP))
    assert "no configuration document" in refused(name, policy, claims(SNP), None, None)
    enclave = authenticated(status=None)
    if name == "compose_hash":
        assert judged(policy, claims(NITRO), enclave)
    else:
        assert "nothing vouches for it" in refused(name, policy, claims(NITRO), enclave)


def test_os_image() -> None:
    """Only a verified image counts: what the configuration says does not."""
    policy = rules(os_image_hash=(IMAGE_HASH,))
    assert judged(policy)
    text = refused("os_image_hash", policy, claims(os_image_hash=b""))
    assert "could not be verified" in text
    text = refused("os_image_hash", policy, claims(os_image_hash=OTHER_32))
    assert f"the OS image is {OTHER_32.hex()}, want {IMAGE_HASH.hex()}" in text


def test_a_sealed_configuration() -> None:
    """Strict asks for its document, of an app of a TD; a pinned policy does where it was there."""
    third = claims(mr_config_id=b"\3" + bytes(47))
    text = refused("require_mr_config", AppraisalPolicy.strict(), third)
    assert "MR_CONFIG_ID 0300" in text
    assert judged(AppraisalPolicy.default(), third)
    for found in (third._replace(has_mr_config=True), claims(mr_config_id=b"\2" + bytes(47))):
        assert judged(AppraisalPolicy.strict(), found)
    assert judged(AppraisalPolicy.strict(), third, None, None)
    assert judged(AppraisalPolicy.strict(), claims(SNP))
    assert pin(result(third._replace(has_mr_config=True))).require_mr_config
    assert not pin(result(third)).require_mr_config


def test_device() -> None:
    """The device is what the maker names, not what the app's information says."""
    ppid = hashlib.sha256(PPID).digest()
    policy = rules(device_id=(ppid,))
    assert judged(policy, bare_claims(), None, None)
    other = hashlib.sha256(b"other").digest()
    refused("device_id", policy, None, authenticated(device=b"other"), app_info(device_id=ppid))
    assert judged(rules(device_id=(other,)), None, authenticated(device=b"other"))
    assert "does not name it" in refused("device_id", policy, None, authenticated(device=b""))


def test_device_of_other_platforms() -> None:
    """A masked chip id and an enclave's parent name no device."""
    chip = hashlib.sha256(register(0x73, 64)).digest()
    policy = rules(device_id=(chip,))
    assert judged(policy, claims(SNP), authenticated(device=b""))
    masked = hashlib.sha256(bytes(64)).digest()
    refused("device_id", rules(device_id=(masked,)), claims(SNP, chip_id=bytes(64)))
    enclave = hashlib.sha256(b"i").digest()
    word = authenticated(status=None, device=b"i")
    refused("device_id", rules(device_id=(enclave,)), claims(NITRO), word)


def test_an_app_without_an_image_is_a_caution() -> None:
    """A policy that names an app and no image is told that any image may claim the app."""
    asks = rules(app_id=(APP_ID,))
    assert judged(asks)[-1].startswith("caution: the policy names an app and no OS image")
    image = {name: (dict(claims().registers)[name],) for name in ("mrtd", "rtmr1", "rtmr2")}
    for more in ({"os_image_hash": (IMAGE_HASH,)}, {"reference_values": ReferenceValues(**image)}):
        assert not any("no OS image" in step for step in judged(asks.replace(**more)))
    firmware = ReferenceValues(mrtd=image["mrtd"])
    assert "caution" in judged(asks.replace(reference_values=firmware))[-1]


# -- how far it got, and whose time ------------------------------------------------------------


def test_steps_before_a_refusal() -> None:
    """An error knows which rules were met before."""
    policy = rules(
        reference_values=ReferenceValues(mrtd=(register(0x11),)), app_id=(APP_ID, OTHER_20)
    )
    with pytest.raises(PolicyError) as caught:
        judged(policy, None, None, app_info(app_id=b"\1" * 20))
    assert caught.value.steps == (
        "platform dstack-tdx is accepted",
        "TCB status UpToDate is accepted",
        "no security advisory applies",
        "mrtd: a reference value each",
    )


def test_now_has_a_time_zone() -> None:
    """A time without one is a mistake of the caller."""
    with pytest.raises(UsageError, match="time zone"):
        rules().appraise(claims(), authenticated(), None, datetime.fromisoformat("2026-09-21"))


# -- what a policy is --------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"accepted_statuses": ()}, "accepted_statuses: nothing would be accepted"),
    ({"accepted_statuses": ("UpToDate",)}, "accepted_statuses: want several of TcbStatus"),
    ({"accepted_statuses": "UpToDate"}, "accepted_statuses: want several of TcbStatus"),
    ({"accepted_statuses": {TcbStatus.REVOKED}}, "accepted_statuses: Revoked is never accepted"),
    ({"accepted_advisories": "INTEL-SA-00837"}, "accepted_advisories: want several of str"),
    ({"accepted_advisories": ("two words",)}, "accepted_advisories: want ids such as"),
    ({"refused_advisories": ("",)}, "refused_advisories: want ids such as"),
    (
        {"accepted_advisories": ("a-1",), "refused_advisories": ("A-1",)},
        "refused_advisories: A-1 is among the accepted ones",
    ),
    ({"platform_grace_period": 30}, "platform_grace_period: want a timedelta of whole seconds"),
    (
        {"qe_grace_period": timedelta(microseconds=1)},
        "qe_grace_period: want a timedelta of whole seconds",
    ),
    ({"qe_grace_period": timedelta(-1)}, "qe_grace_period: want at least nothing"),
    ({"platform_grace_period": timedelta(40_000)}, "at most 36525 days"),
    (
        {"accepted_statuses": TcbStatus.__members__.values()},
        "accepted_statuses: Revoked is never accepted",
    ),
    (
        {"accepted_statuses": {TcbStatus.OUT_OF_DATE}, "qe_grace_period": timedelta(1)},
        "accepted_statuses: OutOfDate is accepted there, so that a grace period would limit",
    ),
    ({"minimum_evaluation_data_number": True}, "minimum_evaluation_data_number: want a number"),
    ({"minimum_evaluation_data_number": -1}, "from 0 to 65535"),
    ({"minimum_svns": ("PCE",)}, "minimum_svns: want several of tuple"),
    ({"minimum_svns": (("PCE",),)}, "minimum_svns: want pairs"),
    ({"minimum_svns": (("", 1),)}, "minimum_svns: want text"),
    ({"minimum_svns": (("PCE", 65_536),)}, "minimum_svns: PCE: want a number from 0 to 65535"),
    ({"minimum_svns": (("PCE", 1), ("PCE", 2))}, "minimum_svns: PCE comes twice"),
    ({"platforms": ()}, "platforms: nothing would be accepted"),
    ({"platforms": "sgx"}, "platforms: want several of str"),
    ({"platforms": ("dstack-gcp-tdx",)}, "platforms: 'dstack-gcp-tdx' is none of dstack-tdx"),
    ({"refuse_simulated": 1}, "refuse_simulated: want true or false"),
    ({"require_mr_config": None}, "require_mr_config: want true or false"),
    ({"reference_values": {}}, "reference_values: want ReferenceValues"),
    ({"td_attributes": 1}, "td_attributes, xfam: want a BitMask"),
    ({"td_attributes": BitMask(must_be_set=1)}, "a TD under debug is never accepted"),
    (
        {"platforms": (SNP,), "xfam": BitMask(must_be_set=3)},
        "xfam: only dstack-tdx has it, and other rules leave that out",
    ),
    (
        {
            "reference_values": ReferenceValues(pcr0=(register(1),)),
            "td_attributes": BitMask(must_be_set=1 << 28),
        },
        "td_attributes: only dstack-tdx has it",
    ),
    ({"app_id": APP_ID}, "app_id: want several values of 20 bytes"),
    ({"app_id": ()}, "app_id: no value would be accepted"),
    ({"compose_hash": (APP_ID,)}, "compose_hash: a value has 20 bytes, want 32"),
    ({"os_image_hash": ("00" * 32,)}, "os_image_hash: a value is bytes, not str"),
    ({"key_provider": ()}, "key_provider: nothing would be accepted"),
    ({"key_provider": ("kms",)}, "key_provider: want several of KeyProvider"),
    ({"required_events": ("model",)}, "required_events: want several of RequiredEvent"),
]


@pytest.mark.parametrize(("given", "text"), WRONG, ids=[text for _, text in WRONG])
def test_rules_that_cannot_be(given: dict[str, Any], text: str) -> None:
    """A rule that accepts nothing, or contradicts another, is refused when it is made."""
    with pytest.raises(UsageError) as caught:
        rules(**given)
    assert text in str(caught.value)


def everything() -> AppraisalPolicy:
    """Return a policy with every rule set."""
    return AppraisalPolicy(
        accepted_statuses={TcbStatus.UP_TO_DATE, TcbStatus.CONFIGURATION_NEEDED},
        accepted_advisories=("INTEL-SA-00837",),
        refused_advisories=("INTEL-SA-00001",),
        platform_grace_period=timedelta(days=30),
        qe_grace_period=timedelta(hours=36),
        minimum_evaluation_data_number=17,
        minimum_svns=(("TDX component 2", 4), ("PCE", 13)),
        platforms=(TDX,),
        refuse_simulated=True,
        require_mr_config=True,
        reference_values=ReferenceValues(mrtd=(register(0x11), register(0x12))),
        td_attributes=BitMask(must_be_set=1 << 28, must_be_clear=1 << 63),
        xfam=BitMask.exactly(bytes.fromhex("e702060000000000")),
        app_id=(APP_ID,),
        compose_hash=(COMPOSE_HASH,),
        instance_id=(INSTANCE_ID,),
        os_image_hash=(IMAGE_HASH,),
        device_id=(hashlib.sha256(PPID).digest(),),
        key_provider=(KeyProvider(name="kms", id=b"\x30\x59"),),
        required_events=(RequiredEvent(name="model", payload=b"weights"),),
    )


def test_every_rule_at_once() -> None:
    """All fields are set in `everything`, and the evidence of the samples meets them."""
    policy = everything()
    for field in fields(policy):
        assert getattr(policy, field.name) not in (None, (), frozenset()), field.name
    assert judged(policy, simulated=False)


def test_a_policy_is_a_value() -> None:
    """It compares, hashes, pickles, and does not change; the order of values does not matter."""
    policy = everything()
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(everything()) == hash(policy)
    assert rules(app_id=[APP_ID, OTHER_20]) == rules(app_id=(OTHER_20, APP_ID, APP_ID))
    assert rules(app_id=(APP_ID,)) != rules()
    assert rules(minimum_svns={"PCE": 1, "A": 2}.items()) == rules(
        minimum_svns=(("A", 2), ("PCE", 1))
    )
    with pytest.raises(FrozenInstanceError):
        untyped(policy).app_id = None


def test_when_details_are_needed() -> None:
    """Dates and evaluation numbers are asked for only by rules about them."""
    assert not any(preset().needs_tcb_details for preset in PRESETS.values())
    assert not rules(minimum_svns=(("PCE", 1),), app_id=(APP_ID,)).needs_tcb_details
    for asks in (
        {"platform_grace_period": timedelta()},
        {"qe_grace_period": timedelta(1)},
        {"minimum_evaluation_data_number": 0},
    ):
        assert rules(**asks).needs_tcb_details, asks
