"""A policy's TOML is understood in full or refused with file, key, and what was wanted."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.errors import ConfigError
from attestkit.verifier.policy import toml_reader
from attestkit.verifier.policy.appraisal_policy import (
    PRESETS,
    AppraisalPolicy,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
)
from attestkit.verifier.policy.rules import REGISTERS
from attestkit.verifier.result import TcbStatus
from tests.verifier.policy.policy_samples import TDX, register

FILE = """
preset = "strict"                       # then replaced:
accepted_statuses = ["UpToDate", "ConfigurationNeeded"]
accepted_advisories = "any"
refused_advisories = "INTEL-SA-00837"
platform_grace_period = 30
qe_grace_period = "36h"
minimum_evaluation_data_number = 17
platforms = ["dstack-tdx"]
refuse_simulated = true
require_mr_config = true
app_id = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
compose_hash = [
  "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c",
  "0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D0C0D",
]
instance_id = ["0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"]
os_image_hash = "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"
device_id = "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"
key_provider = { name = "kms", id = "3059" }

[minimum_svns]
"TDX component 2" = 6
PCE = 13

[reference_values]
mrtd = "REGISTER"
rtmr0 = ["REGISTER"]

[td_attributes]
must_be_set = ["SEPT_VE_DISABLE"]
must_be_clear = "0000000000000080"

[xfam]
mask = "ff00000000000000"
value = "e700000000000000"

[[required_events]]
name = "model"
payload = "00ff"

[[required_events]]
name = "other"
digest = "REGISTER"
during = "app"
""".replace("REGISTER", "11" * 48)


def error(text: str | bytes) -> str:
    """Return what is wrong with a policy file."""
    with pytest.raises(ConfigError) as caught:
        AppraisalPolicy.from_toml(text, "site.toml")
    assert str(caught.value).startswith("site.toml: ")
    return str(caught.value).removeprefix("site.toml: ")


def test_every_key() -> None:
    """Each key of the file becomes the rule of its name."""
    assert AppraisalPolicy.from_toml(FILE) == AppraisalPolicy(
        accepted_statuses={TcbStatus.UP_TO_DATE, TcbStatus.CONFIGURATION_NEEDED},
        accepted_advisories=None,
        refused_advisories=("INTEL-SA-00837",),
        platform_grace_period=timedelta(days=30),
        qe_grace_period=timedelta(hours=36),
        minimum_evaluation_data_number=17,
        minimum_svns=(("PCE", 13), ("TDX component 2", 6)),
        platforms=(TDX,),
        refuse_simulated=True,
        require_mr_config=True,
        reference_values=ReferenceValues(mrtd=(register(0x11),), rtmr0=(register(0x11),)),
        td_attributes=BitMask(must_be_set=1 << 28, must_be_clear=1 << 63),
        xfam=BitMask(must_be_set=0xE7, must_be_clear=0x18),
        app_id=(register(0x0A, 20),),
        compose_hash=(register(0x0C, 32), b"\x0c\x0d" * 16),
        instance_id=(register(0x0A, 20),),
        os_image_hash=(register(0x0C, 32),),
        device_id=(register(0x0C, 32),),
        key_provider=(KeyProvider(name="kms", id=b"\x30\x59"),),
        required_events=(
            RequiredEvent(name="model", payload=b"\x00\xff"),
            RequiredEvent(name="other", digest=register(0x11), during="app"),
        ),
    )


def test_the_keys_are_the_fields() -> None:
    """Every rule can be written in a file, and nothing else can."""
    assert set(toml_reader._KEYS) == set(AppraisalPolicy.__dataclass_fields__)
    assert set(toml_reader.PRESET_NAMES) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset: str) -> None:
    """A preset alone is that policy; a key replaces the one rule."""
    assert AppraisalPolicy.from_toml(f'preset = "{preset}"') == PRESETS[preset]()
    changed = AppraisalPolicy.from_toml(f'preset = "{preset}"\nplatforms = ["sgx"]')
    assert changed == PRESETS[preset]().replace(platforms=("sgx",))


def test_a_file(tmp_path: Path) -> None:
    """A file is read from its path, and errors name it."""
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    assert AppraisalPolicy.load(path) == AppraisalPolicy.from_toml(FILE)
    assert AppraisalPolicy.load(str(path)) == AppraisalPolicy.load(path)
    path.write_text("preset = 1")
    with pytest.raises(ConfigError) as caught:
        AppraisalPolicy.load(path)
    assert str(caught.value).startswith(f"{path}: preset: 1, want ")


@pytest.mark.parametrize("name", ["missing.toml", ".", "nul\0"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """A file that is not there, a folder, or an impossible path is told with its name."""
    with pytest.raises(ConfigError, match=str(tmp_path)):
        AppraisalPolicy.load(tmp_path / name)


def test_size(tmp_path: Path) -> None:
    """A file of 1 MiB is read, one of a byte more is not."""
    text = 'preset = "strict"\n# '
    full = text + "x" * (toml_reader.LARGEST - len(text))
    assert AppraisalPolicy.from_toml(full) == AppraisalPolicy.strict()
    assert error(full + "x") == "longer than 1048576 bytes"
    path = tmp_path / "policy.toml"
    path.write_text(full + "x")
    with pytest.raises(ConfigError, match="longer than 1048576 bytes"):
        AppraisalPolicy.load(path)


P = 'preset = "default"\n'
WRONG: list[tuple[str | bytes, str]] = [
    # What the file is.
    ("", 'preset: missing; want "strict" or "default" or "development", or a list of accepted_st'),
    ("# nothing\n", "preset: missing"),
    ("app_id = 1", "preset: missing"),
    ("preset", "not TOML: "),
    (b"\xff", "not UTF-8 text"),
    (P + "preset = 'strict'", "not TOML: Cannot overwrite a value"),
    (P + "app_id = " + "[" * 17 + "]" * 17, "brackets nest deeper than 16 levels"),
    (P + "app_id = " + "{a=" * 17 + "1" + "}" * 17, "brackets nest deeper than 16 levels"),
    (P + "a." * 17 + "b = 1", "a line has more than 16 dots"),
    (P + "refuse_simulated = " + "9" * 4000, "refuse_simulated: a large number, want true or"),
    # Presets and keys.
    ('preset = "lax"', "preset: 'lax', want \"strict\" or"),
    ('preset = ["strict"]', 'preset: a list, want "strict" or'),
    (P + "mrtd = 1", "mrtd: unknown key; want one of preset, accepted_statuses"),
    (P + "compose_hsah = 1", 'compose_hsah: unknown key; did you mean "compose_hash"?'),
    (P + "app-id = 1", 'app-id: unknown key; did you mean "app_id"?'),
    (P + '"a\\u0007b" = 1', "a\\x07b: unknown key"),
    (P + f'"{"a" * 70}" = 1', f"{'a' * 64}...: unknown key; want one of preset, "),
    (
        P + "[reference_values]\nmr_td = 1",
        'reference_values.mr_td: unknown key; did you mean "mrtd',
    ),
    (P + "[td_attributes]\nset = []", "td_attributes.set: unknown key; "),
    (
        P + "[[required_events]]\nnames = 1",
        'required_events.names: unknown key; did you mean "name"?',
    ),
    (P + "[key_provider]\nkind = 1", "key_provider.kind: unknown key; "),
    # Statuses and advisories.
    ("accepted_statuses = []", "accepted_statuses: nothing would be accepted"),
    ('accepted_statuses = ["UptoDate"]', "accepted_statuses: 'UptoDate', want \"UpToDate\""),
    ("accepted_statuses = [1]", 'accepted_statuses: 1, want "UpToDate" or '),
    ("accepted_statuses = [true]", 'accepted_statuses: true, want "UpToDate" or '),
    ('accepted_statuses = "Revoked"', "accepted_statuses: Revoked is never accepted"),
    (P + "accepted_advisories = true", "accepted_advisories: true, want a string"),
    (P + 'accepted_advisories = ["any of"]', "accepted_advisories: want ids such as"),
    (P + "refused_advisories = [1]", "refused_advisories: 1, want a string, or a list of strings"),
    # Periods and numbers.
    (P + 'platform_grace_period = "30 days"', "platform_grace_period: '30 days', want a number of"),
    (P + "platform_grace_period = 1.5", "platform_grace_period: a float, want a number of days"),
    (P + "platform_grace_period = -1", "platform_grace_period: -1, want a number of days"),
    (P + "platform_grace_period = true", "platform_grace_period: true, want a number of days"),
    (P + f"qe_grace_period = {10**30}", "qe_grace_period: a large number, want a number of days"),
    (P + 'qe_grace_period = "9999999999w"', "qe_grace_period: '9999999999w', want a number of"),
    (P + 'qe_grace_period = "5300w"', "qe_grace_period: want at least nothing and at most 36525"),
    (
        'preset = "development"\nqe_grace_period = 1',
        "accepted_statuses: OutOfDate is accepted there, so that a grace period would limit no",
    ),
    (P + 'minimum_evaluation_data_number = "1"', "minimum_evaluation_data_number: '1', want a num"),
    (P + "minimum_evaluation_data_number = 65536", "minimum_evaluation_data_number: want a number"),
    (
        P + "refused_advisories = []",
        "refused_advisories: asks for nothing; name something, or leave",
    ),
    (P + "minimum_svns = {}", "minimum_svns: asks for nothing; name something, or leave it out"),
    (P + "[minimum_svns]", "minimum_svns: asks for nothing"),
    (P + "minimum_svns = []", "minimum_svns: asks for nothing"),
    (P + "[reference_values]", "reference_values: asks for nothing"),
    (P + "required_events = []", "required_events: asks for nothing"),
    (P + "minimum_svns = 1", "minimum_svns: 1, want a table, written [minimum_svns]"),
    (P + "[minimum_svns]\n'PCE' = '1'", "minimum_svns.PCE: '1', want a number"),
    (P + "[minimum_svns]\nPCE = true", "minimum_svns.PCE: true, want a number"),
    (P + "[minimum_svns]\nPCE = -1", "minimum_svns: PCE: want a number from 0 to 65535"),
    (P + "refuse_simulated = 1", "refuse_simulated: 1, want true or false"),
    (P + "require_mr_config = 'yes'", "require_mr_config: 'yes', want true or false"),
    (P + 'platforms = ["tdx"]', "platforms: 'tdx' is none of dstack-tdx, "),
    (P + "platforms = []", "platforms: nothing would be accepted"),
    # Bytes.
    (P + "app_id = []", "app_id: no value would be accepted"),
    (P + 'app_id = ""', "app_id: 0 bytes, want 40 hex digits (20 bytes), or a list of such"),
    (P + 'app_id = "0a"', "app_id: 1 bytes, want 40 hex digits (20 bytes), or a list of such"),
    (P + 'app_id = "0"', "app_id: '0' is not hex, two digits a byte; want 40 hex digits"),
    (P + 'app_id = "0x"', "app_id: '0x' is not hex"),
    (P + 'app_id = "0a 0a"', "app_id: '0a 0a' is not hex"),
    (P + 'app_id = "\u0660\u0660"', "app_id: '\\u0660\\u0660' is not hex"),
    (P + f'app_id = "{"g" * 100}"', "app_id: a long string is not hex"),
    (P + "app_id = 1979-05-27", "app_id: a date, want 40 hex digits"),
    (P + "app_id = [[]]", "app_id: a list, want 40 hex digits"),
    (P + 'device_id = "00"', "device_id: 1 bytes, want 64 hex digits (32 bytes)"),
    (P + "[reference_values]\nmrtd = []", "reference_values.mrtd: no value would be accepted"),
    (P + '[reference_values]\nmrtd = "00"', "reference_values.mrtd: 1 bytes, want 96 hex digits"),
    (P + "reference_values = 1", "reference_values: 1, want a table, written [reference_values]"),
    (
        P + f'[reference_values]\nmrtd = "{"00" * 48}"\npcr0 = "{"00" * 48}"',
        "reference_values.pcr0: a register of dstack-nitro-enclave, and mrtd is one of dstack-tdx",
    ),
    # Bits.
    (P + "[xfam]", "xfam: no bit is asked for"),
    (P + "xfam = 3", "xfam: 3, want a table, written [xfam]"),
    (P + "[xfam]\nmust_be_set = 3", "xfam.must_be_set: 3, want 16 hex digits (8 bytes), as in"),
    (P + '[xfam]\nmust_be_set = "03"', "xfam.must_be_set: 1 bytes, want 16 hex digits"),
    (P + '[xfam]\nmust_be_set = ["AVX2"]', "xfam.must_be_set: 'AVX2', want one of FP, SSE, AVX"),
    (P + "[xfam]\nmust_be_set = [[]]", "xfam.must_be_set: a list, want one of FP, SSE, AVX"),
    (
        P + '[xfam]\nmust_be_set = ["FP"]\nmust_be_clear = ["FP"]',
        "xfam: bit 0 must be set and must be clear",
    ),
    (P + f'[xfam]\nmask = "{"ff" * 8}"', "xfam: value goes with mask, or alone"),
    (
        P + f'[xfam]\nvalue = "{"ff" * 8}"\nmust_be_set = ["FP"]',
        "xfam: value goes with mask, or alone",
    ),
    (P + '[xfam]\nvalue = "ff"', "xfam.value: want 8 bytes"),
    (P + f'[xfam]\nvalue = "{"f" * 16}"\nmask = ""', "xfam.mask: want 8 bytes"),
    (P + '[td_attributes]\nmust_be_set = ["DEBUG"]', "td_attributes: a TD under debug is never"),
    # Key providers and events.
    (P + "key_provider = []", "key_provider: nothing would be accepted"),
    (P + 'key_provider = "kms"', "key_provider: 'kms', want a table, written [key_provider]"),
    (P + "key_provider = {}", "key_provider: want a name, an id, or both"),
    (P + 'key_provider = { id = "" }', "key_provider.id: want bytes that are not empty"),
    (P + 'key_provider = { name = "" }', "key_provider.name: want text that is not empty"),
    (P + "key_provider = { name = 1 }", "key_provider.name: 1, want a string"),
    (P + "key_provider = { name = ['kms'] }", "key_provider.name: a list, want a string"),
    (P + "[[required_events]]", "required_events: an event has no name"),
    (P + "required_events = ['model']", "required_events: 'model', want a table"),
    (P + '[[required_events]]\nname = ""', "required_events.name: want text that is not empty"),
    (P + '[[required_events]]\nname = "a"\npayload = 1', "required_events.payload: 1, want hex"),
    (P + '[[required_events]]\nname = "a"\nduring = "x"', 'required_events.during: want "boot"'),
    (P + '[[required_events]]\nname = "a"\nduring = []', "required_events.during: a list, want a"),
    (P + '[[required_events]]\nname = "a"\ndigest = ""', "required_events.digest: a value has 0"),
    (
        P + '[[required_events]]\nname = "a"\n[[required_events]]\nname = "a"',
        "required_events: event 'a' comes twice",
    ),
    (
        P + 'accepted_advisories = ["A"]\nrefused_advisories = "a"',
        "refused_advisories: A is among the accepted ones",
    ),
]


@pytest.mark.parametrize(("text", "wanted"), WRONG, ids=range(len(WRONG)))
def test_mistakes_are_named(text: str | bytes, wanted: str) -> None:
    """File, key, and what was wanted are in the error."""
    told = error(text)
    assert told.startswith(wanted)
    assert len(told) < 600
    assert told.isprintable()


def test_brackets_in_text_do_not_nest() -> None:
    """Only brackets of the format count: those in strings and comments are text."""
    event = '[[required_events]]\nname = "%s"\n'
    many = "".join(event % (f"[{{{number}" * 9) for number in range(100))
    policy = AppraisalPolicy.from_toml(P + "# it's [[[\n" + many)
    assert len(policy.required_events) == 100
    for quote in ('"', "'", '"""', "'''"):
        assert "deeper" in error(P + "app_id = [" + f"{quote}]{quote}, [" * 17)
        assert "deeper" in error(P + "app_id = [" + f"{quote}]{quote}\n, [#]\n" * 17)
    for quote in ('"', "'"):
        for more in range(3):  # the closing quotes may have two of the text before them
            text = f"{3 * quote}x{(3 + more) * quote}, ["
            assert "deeper" in error(P + "app_id = [" + text * 17)


def test_a_hostile_file_ends() -> None:
    """Files are refused soon that would take quadratic time, or all of the stack."""
    size = toml_reader.LARGEST // 4
    for part in ('"""\\', '"\\', "'''", "'", "[", "{a=", "a.", "#\n", "[[x]]\n", "=", "\\"):
        text = P + "app_id = " + part * (size // len(part))
        assert error(text[:size])
    for part in ("a.", "[a.b]\n", "a"):
        assert error((P + part * (size // len(part)))[:size])


# -- any file at all ---------------------------------------------------------------------------

HEX = st.sampled_from(["", "00", "0", "zz", "00" * 8, "ff" * 8, "0a" * 20, "0c" * 32, "11" * 48])
SCALARS = (
    HEX
    | st.sampled_from(["any", "kms", "boot", "model", "UpToDate", "OutOfDate", "30d", TDX, "A-1"])
    | st.text(max_size=4)
    | st.integers(-2, 2**65)
    | st.booleans()
    | st.floats()
    | st.dates()
)
NAMES = st.sampled_from(
    sorted(
        {
            *toml_reader._KEYS,
            *REGISTERS,
            *("must_be_set", "must_be_clear", "mask", "value"),
            *("name", "id", "payload", "digest", "during", "other"),
        }
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(st.sampled_from(sorted(toml_reader._KEYS)), VALUES, max_size=3)


@settings(deadline=None)  # machines are busy
@given(table=TABLES, preset=st.sampled_from(["strict", "default", "development", "lax", 1]))
def test_any_table_is_a_policy_or_an_error(table: dict[str, Any], preset: object) -> None:
    """Whatever TOML says, the result is a policy or a ConfigError."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toml_reader, "decode", lambda _: {"preset": preset, **table})
        try:
            policy = AppraisalPolicy.from_toml("")
        except ConfigError:
            return
    assert isinstance(hash(policy), int)


@settings(deadline=None)  # machines are busy
@given(data=st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_a_policy_or_an_error(data: str | bytes) -> None:
    """Whatever is in the file, the result is a policy or a ConfigError."""
    try:
        AppraisalPolicy.from_toml(data)
    except ConfigError:
        pass
    else:
        pytest.fail("a policy out of nothing")
