"""Tests of the policy reader: every key, and errors that name file and key."""

from hashlib import sha256
from pathlib import Path

import pytest

from attestkit._formats.toml import LARGEST
from attestkit.errors import ConfigError
from attestkit.verifier.policy.appraisal_policy import PRESETS, AppraisalPolicy
from attestkit.verifier.policy.toml import reader as toml_reader
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    APP_ID,
    COMPOSE_HASH,
    IMAGE_HASH,
    INSTANCE_ID,
    PPID,
    create_policy_with_every_rule,
    create_snp_policy_with_every_rule,
)

FILE = f"""
preset = "strict"                       # then replaced:
accepted_statuses = ["UpToDate", "ConfigurationNeeded"]
accepted_advisories = ["intel-sa-00837"]
refused_advisories = "INTEL-SA-00001"
platform_grace_period = 30
qe_grace_period = "36h"
minimum_evaluation_data_number = 17
platforms = ["dstack-tdx"]
refuse_simulated = true
require_mr_config = true
require_acpi_tables = true
minimum_measurement_version = 4
app_id = "{APP_ID.hex()}"
compose_hash = "{COMPOSE_HASH.hex().upper()}"
instance_id = ["{INSTANCE_ID.hex()}"]
os_image_hash = "{IMAGE_HASH.hex()}"
device_id = "{sha256(PPID).hexdigest()}"
mr_aggregated = "{"a6" * 32}"
mr_system = ["{"55" * 32}", "{"56" * 32}"]
key_provider = {{ name = "kms", id = "3059" }}
required_events_in_order = true
only_required_events = "app"
refuse_unnamed_td_bits = true
require_fixed_td_bits = true
minimum_qe_svn = 8
minimum_pce_svn = 13
refuse_dynamic_platform = true
refuse_cached_keys = true
refuse_smt = true

[minimum_svns]
"TDX component 2" = 4
PCE = 13

[reference_values]
mrtd = [
  "{"11" * 48}",
  "{"12" * 48}",
]
rtmr0 = "{"20" * 48}"

[td_attributes]
must_be_set = ["SEPT_VE_DISABLE"]
must_be_clear = "0000000000000080"

[xfam]
mask = "{"ff" * 8}"
value = "e702060000000000"

[[required_events]]
name = "storage-fs"

[[required_events]]
name = "model"
payload = "{b"weights".hex()}"
occurrence = "last"

[gpu]
required = true
chips = ["GH100", "LS10"]
count = 8
switch_count = 4
drivers = ["550.90.07", "570.124.03"]
min_driver = "550.90.07"
vbios = "96.00.9f.00.01"
min_vbios = "96.00.9F.00.01"
ready_state = true
protected_pcie = true
allow_mpt = false
binding = "report_data"
ocsp = "off"
max_ocsp_age = "12h"
ocsp_grace = "2d"
allow_hold = true
allow_absent_fwid = true
allow_trailing_nul = true
allow_runtime_event = true
allow_boot_result = true
accepted_mismatches = [9, 12]
nras = "beside"
"""


SNP_FILE = """
accepted_statuses = "UpToDate"
platforms = "dstack-amd-sev-snp"
sev_features = [0x1, 0x21, 0x201]
vcpus = [2, 4]
vcpu_type = ["EPYC-Milan", "epyc-genoa-v1"]
minimum_guest_svn = 2
minimum_guest_abi = "1.55"
minimum_firmware = "1.55.29"
refuse_provisional_firmware = true
vlek_providers = "CN=cc-us-east-2.amazonaws.com"
minimum_tcb = {milan = {boot_loader = 4, snp = 23}, Turin = {fmc = 1}}

[guest_policy]
must_be_set = ["SMT"]
must_be_clear = ["CXL_ALLOW"]

[platform_info]
must_be_set = "2000000000000000"
"""


def get_rejection_text(text: str | bytes) -> ConfigError:
    """Return the error for a policy file; its text starts with the file's name."""
    with pytest.raises(ConfigError) as caught:
        AppraisalPolicy.from_toml(text, "site.toml")
    assert str(caught.value).startswith("site.toml: ")
    return caught.value


def test_from_toml_reads_every_key() -> None:
    """Each key of the file becomes the rule of its name."""
    assert AppraisalPolicy.from_toml(FILE) == create_policy_with_every_rule()
    assert AppraisalPolicy.from_toml(SNP_FILE) == create_snp_policy_with_every_rule()
    any_features = AppraisalPolicy.from_toml('preset = "default"\nsev_features = "any"')
    assert any_features == AppraisalPolicy.default().replace(sev_features=None)


def test_from_toml_keys_match_policy_fields() -> None:
    """The keys of a file are exactly the fields of a policy."""
    assert set(toml_reader._readers(AppraisalPolicy)) == set(AppraisalPolicy.__dataclass_fields__)
    assert set(toml_reader.PRESET_NAMES) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_from_toml_preset_with_replaced_rule(preset: str) -> None:
    """A preset gives its policy, and a key replaces one rule."""
    assert AppraisalPolicy.from_toml(f'preset = "{preset}"') == PRESETS[preset]()
    replaced = AppraisalPolicy.from_toml(f'preset = "{preset}"\nplatforms = ["sgx"]')
    assert replaced == PRESETS[preset]().replace(platforms=("sgx",))


def test_load_reads_path(tmp_path: Path) -> None:
    """A file is read from its path, and errors name the path."""
    path = tmp_path / "policy.toml"
    path.write_text(FILE)
    assert AppraisalPolicy.load(path) == AppraisalPolicy.from_toml(FILE)
    assert AppraisalPolicy.load(str(path)) == AppraisalPolicy.load(path)
    path.write_text("preset = 1")
    with raises(ConfigError, "wrong_value", start=f"{path}: preset: 1, "):
        AppraisalPolicy.load(path)


@pytest.mark.parametrize("name", ["missing.toml", ".", "nul\0"])
def test_load_unreadable_file_raises_config_error(tmp_path: Path, name: str) -> None:
    """A missing file, a folder or an invalid path raises ConfigError with the path."""
    with raises(ConfigError, "unreadable", part=str(tmp_path)):
        AppraisalPolicy.load(tmp_path / name)


def test_policy_file_over_1_mib_is_rejected(tmp_path: Path) -> None:
    """A file of 1 MiB is read; one byte more is rejected."""
    text = 'preset = "strict"\n# '
    full = text + "x" * (LARGEST - len(text))
    assert AppraisalPolicy.from_toml(full) == AppraisalPolicy.strict()
    assert get_rejection_text(full + "x").reason == "too_large"
    path = tmp_path / "policy.toml"
    path.write_text(full + "x")
    with raises(ConfigError, "too_large"):
        AppraisalPolicy.load(path)


PRESET_LINE = 'preset = "default"\n'
INVALID_FILES: list[tuple[str | bytes, str, str]] = [
    # The file as a whole.
    ("", "missing", "preset"),
    ("preset", "syntax", ""),
    (b"\xff", "encoding", ""),
    # Presets and keys.
    ('preset = "lax"', "wrong_value", "preset"),
    ('preset = ["strict"]', "wrong_value", "preset"),
    # Statuses and advisories.
    ("accepted_statuses = []", "missing", "accepted_statuses"),
    ('accepted_statuses = ["UptoDate"]', "wrong_value", "accepted_statuses"),
    ("accepted_statuses = [1]", "wrong_value", "accepted_statuses"),
    ('accepted_statuses = "Revoked"', "wrong_value", "accepted_statuses"),
    ('preset = "development"\nqe_grace_period = 1', "conflict", "accepted_statuses"),
]
INVALID_RULES: list[tuple[str, str, str]] = [  # beside a preset
    ("preset = 'strict'", "syntax", ""),
    ("app_id = " + "[" * 17 + "]" * 17, "too_deep", ""),
    ("refuse_simulated = " + "9" * 4000, "wrong_type", "refuse_simulated"),
    ("mrtd = 1", "unknown_key", "mrtd"),
    ('"a\\u0007b" = 1', "unknown_key", "a\\x07b"),
    (f'"{"a" * 70}" = 1', "unknown_key", f"{'a' * 64}..."),
    ("[key_provider]\nkind = 1", "unknown_key", "key_provider.kind"),
    ("accepted_advisories = true", "wrong_type", "accepted_advisories"),
    ('accepted_advisories = ["any of"]', "wrong_value", "accepted_advisories"),
    # Periods and numbers.
    ("platform_grace_period = -1", "wrong_value", "platform_grace_period"),
    ('qe_grace_period = "9999999999w"', "wrong_value", "qe_grace_period"),
    ('minimum_evaluation_data_number = "1"', "wrong_type", "minimum_evaluation_data_number"),
    ("minimum_evaluation_data_number = 65536", "wrong_value", "minimum_evaluation_data_number"),
    ("refused_advisories = []", "missing", "refused_advisories"),
    ("[minimum_svns]", "missing", "minimum_svns"),
    ("[minimum_tcb]", "missing", "minimum_tcb"),
    ("[minimum_tcb]\nMilan = 4", "wrong_type", "minimum_tcb.Milan"),
    ("[minimum_tcb.Milan]", "missing", "minimum_tcb.Milan"),
    ("[minimum_tcb.Milan]\nsnp = true", "wrong_type", "minimum_tcb.Milan.snp"),
    ("[minimum_tcb.Milan]\nsnp = 256", "wrong_value", "minimum_tcb.Milan.snp"),
    ("[minimum_tcb.Milan]\nfmc = 1", "wrong_value", "minimum_tcb.Milan"),
    ("[minimum_tcb.Rome]\nsnp = 1", "wrong_value", "minimum_tcb"),
    ("[minimum_tcb]\nmilan.snp = 1\nMILAN.snp = 2", "conflict", "minimum_tcb"),
    ("vlek_providers = []", "missing", "vlek_providers"),
    ("vlek_providers = [1]", "wrong_type", "vlek_providers"),
    ("[minimum_svns]\nPCE = true", "wrong_type", "minimum_svns.PCE"),
    ("[minimum_svns]\nPCE = -1", "wrong_value", "minimum_svns"),
    ("refuse_simulated = 1", "wrong_type", "refuse_simulated"),
    ('platforms = ["tdx"]', "wrong_value", "platforms"),
    # Bytes.
    ("app_id = []", "missing", "app_id"),
    ('app_id = "0a"', "wrong_size", "app_id"),
    ('app_id = "0a 0a"', "encoding", "app_id"),
    ('app_id = "\u0660\u0660"', "encoding", "app_id"),
    ("app_id = 1979-05-27", "wrong_type", "app_id"),
    ('[reference_values]\nmrtd = "00"', "wrong_size", "reference_values.mrtd"),
    ("reference_values = 1", "wrong_type", "reference_values"),
    (
        f'[reference_values]\nmrtd = "{"00" * 48}"\npcr0 = "{"00" * 48}"',
        "conflict",
        "reference_values.pcr0",
    ),
    # Bits.
    # SEV-SNP.
    ("sev_features = []", "missing", "sev_features"),
    ("sev_features = [0]", "wrong_value", "sev_features"),
    ('sev_features = ["any"]', "wrong_type", "sev_features"),
    ("vcpus = [513]", "wrong_value", "vcpus"),
    ("vcpus = [true]", "wrong_type", "vcpus"),
    ('vcpu_type = ["host"]', "wrong_value", "vcpu_type"),
    ("minimum_guest_svn = -1", "wrong_value", "minimum_guest_svn"),
    ("minimum_guest_abi = 1.55", "wrong_type", "minimum_guest_abi"),
    ('minimum_guest_abi = "1.55.29"', "wrong_value", "minimum_guest_abi"),
    ('minimum_firmware = "1.256"', "wrong_value", "minimum_firmware"),
    ('minimum_firmware = "1.\u0665"', "wrong_value", "minimum_firmware"),
    ("refuse_provisional_firmware = 1", "wrong_type", "refuse_provisional_firmware"),
    ('[guest_policy]\nmust_be_set = ["DEBUG"]', "wrong_value", "guest_policy"),
    ('[guest_policy]\nmust_be_set = ["SMT_EN"]', "wrong_value", "guest_policy.must_be_set"),
    ('[platform_info]\nmust_be_set = "01"', "wrong_size", "platform_info.must_be_set"),
    ('platforms = ["sgx"]\nvcpus = [1]', "conflict", "vcpus"),
    ("[xfam]", "missing", "xfam"),
    ("xfam = 3", "wrong_type", "xfam"),
    ("[xfam]\nmust_be_set = 3", "wrong_type", "xfam.must_be_set"),
    ('[xfam]\nmust_be_set = "03"', "wrong_size", "xfam.must_be_set"),
    ('[xfam]\nmust_be_set = ["AVX2"]', "wrong_value", "xfam.must_be_set"),
    ('[xfam]\nmust_be_set = ["FP"]\nmust_be_clear = ["FP"]', "conflict", "xfam"),
    (f'[xfam]\nmask = "{"ff" * 8}"', "conflict", "xfam"),
    (f'[xfam]\nvalue = "{"ff" * 8}"\nmust_be_set = ["FP"]', "conflict", "xfam"),
    ('[td_attributes]\nmust_be_set = ["DEBUG"]', "wrong_value", "td_attributes"),
    # Key providers and events.
    ('key_provider = "kms"', "wrong_type", "key_provider"),
    ("key_provider = {}", "missing", "key_provider"),
    ('key_provider = { id = "" }', "wrong_type", "key_provider.id"),
    ("[[required_events]]", "missing", "required_events"),
    ("required_events = ['model']", "wrong_type", "required_events"),
    ('[[required_events]]\nname = ""', "wrong_type", "required_events.name"),
    ('[[required_events]]\nname = "a"\nduring = "x"', "wrong_value", "required_events.during"),
    (
        '[[required_events]]\nname = "a"\n[[required_events]]\nname = "a"',
        "duplicate",
        "required_events",
    ),
    (
        '[[required_events]]\nname = "a"\noccurrence = "x"',
        "wrong_value",
        "required_events.occurrence",
    ),
    ('only_required_events = "x"', "wrong_value", "only_required_events"),
    ("only_required_events = true", "wrong_type", "only_required_events"),
    ('required_events_in_order = "yes"', "wrong_type", "required_events_in_order"),
    # Rules about TDs and Intel platforms.
    ("minimum_qe_svn = 65536", "wrong_value", "minimum_qe_svn"),
    ('minimum_pce_svn = "1"', "wrong_type", "minimum_pce_svn"),
    ("gpu = 1", "wrong_type", "gpu"),
    ("gpu = {}", "missing", "gpu"),
    ("gpu = {binding = 'nonce'}", "missing", "gpu"),
    ("gpu = {allow_hold = true}", "missing", "gpu"),
    ("gpu = {chip = 'GH100'}", "unknown_key", "gpu.chip"),
    ("gpu = {chips = []}", "missing", "gpu.chips"),
    ("gpu = {chips = ['']}", "wrong_type", "gpu.chips"),
    ("gpu = {count = 0}", "wrong_value", "gpu.count"),
    ("gpu = {count = 65}", "wrong_value", "gpu.count"),
    ("gpu = {required = 1}", "wrong_type", "gpu.required"),
    ("gpu = {min_driver = '550.x'}", "wrong_value", "gpu.min_driver"),
    ("gpu = {min_vbios = '96..9F'}", "wrong_value", "gpu.min_vbios"),
    ("gpu = {binding = 'hope'}", "wrong_value", "gpu.binding"),
    ("gpu = {ocsp = 'maybe'}", "wrong_value", "gpu.ocsp"),
    ("gpu = {nras = 'always'}", "wrong_value", "gpu.nras"),
    ("gpu = {accepted_mismatches = [64]}", "wrong_value", "gpu.accepted_mismatches"),
    ("refuse_smt = 1", "wrong_type", "refuse_smt"),
    ('accepted_advisories = ["A"]\nrefused_advisories = "a"', "conflict", "refused_advisories"),
]
INVALID_FILES += [(PRESET_LINE + text, reason, key) for text, reason, key in INVALID_RULES]


@every_case(("text", "reason", "key"), INVALID_FILES, ids=range(len(INVALID_FILES)))
def test_from_toml_error_names_file_and_key(text: str | bytes, reason: str, key: str) -> None:
    """The error has a reason, the file and the key, and no control characters."""
    error = get_rejection_text(text)
    assert error.reason == reason
    assert str(error).startswith(f"site.toml: {key}: " if key else "site.toml: ")
    assert len(str(error)) < 1200  # lists all keys
    assert str(error).isprintable()


def test_from_toml_ignores_brackets_in_strings_and_comments() -> None:
    """Brackets in strings and comments do not count as nesting."""
    event = '[[required_events]]\nname = "%s"\n'
    many = "".join(event % (f"[{{{number}" * 9) for number in range(100))
    policy = AppraisalPolicy.from_toml(PRESET_LINE + "# it's [[[\n" + many)
    assert len(policy.required_events) == 100
    for quote in ('"', "'", '"""', "'''"):
        for text in (f"{quote}]{quote}, [", f"{quote}]{quote}\n, [#]\n"):
            assert get_rejection_text(PRESET_LINE + "app_id = [" + text * 17).reason == "too_deep"
    for quote in ('"', "'"):
        for more in range(3):  # closing quotes may be preceded by up to two quotes of the text
            text = f"{3 * quote}x{(3 + more) * quote}, ["
            assert get_rejection_text(PRESET_LINE + "app_id = [" + text * 17).reason == "too_deep"
