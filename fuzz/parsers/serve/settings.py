"""Targets: people's files and flags, and what keeps state or secrets on a disk."""

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

from attestkit._crypto.aead import aes_gcm_encrypt
from attestkit._crypto.ed25519 import x25519, x25519_public_key
from attestkit.backends.linux.kernel_paths import KernelRelease
from attestkit.backends.recording.recorded_protocols import host_from_json
from attestkit.backends.recording.recording_file import RecordingFile, parse_recording
from attestkit.backends.simulator import simulated_roots
from attestkit.backends.simulator.faults.fault_specs import Fault
from attestkit.backends.simulator.soft_td import REGISTERS, State, StateFolder, read_seed
from attestkit.dstack.env_encryption import decrypt_env_vars
from attestkit.emulator.linux_calls import EmulatedKernel
from attestkit.errors import (
    AttestKitError,
    BackendError,
    ConfigError,
    FormatError,
    UsageError,
    VerificationError,
)
from attestkit.keys import AppKeys
from attestkit.report_data import ReportData
from attestkit.serve.config.agent_config_file import parse_config
from attestkit.serve.config.limits import parse_limit
from attestkit.serve.config.option_values import parse_address, seed_from_hex
from attestkit.serve.config.options import FLAGS, Config, Options
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short
from tests.vectors import data

# -- policies and configuration --------------------------------------------------------------------


def _policy(_raw: bytes, found: AppraisalPolicy) -> None:
    check_same("written and read again", AppraisalPolicy.from_toml(found.to_toml()), found)
    repr(found)


def policy_samples() -> list[bytes]:
    """Return policies with every rule."""
    every = """preset = "strict"
accepted_statuses = ["UpToDate", "SWHardeningNeeded"]
accepted_advisories = "any"
refused_advisories = ["INTEL-SA-00001"]
platform_grace_period = "30d"
minimum_evaluation_data_number = 17
platforms = ["dstack-tdx"]
refuse_simulated = true
require_mr_config = true
require_fixed_td_bits = true
minimum_qe_svn = 8
only_required_events = "app"
app_id = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
[minimum_svns]
"tdx_module" = 3
[reference_values]
rtmr3 = ["%s"]
[td_attributes]
must_be_clear = "0100000000000000"
[[key_provider]]
name = "kms"
id = "3059"
[[required_events]]
name = "app-id"
during = "boot"
occurrence = "last"
""" % ("00" * 48)
    return [b'preset = "default"\n', every.encode(), b'accepted_statuses = ["UpToDate"]\n']


def _config(raw: bytes) -> Config:
    return parse_config(raw, "agent.toml")


def _typed(_raw: bytes, found: Config) -> None:
    check("sources", found.values.keys() == found.sources.keys() <= set(Options._fields))
    for name, value in found.values.items():
        check("a type of options", isinstance(value, bool if name in FLAGS else (str, tuple)))


def config_samples() -> list[bytes]:
    """Return the agent's configuration in TOML and in JSON."""
    toml = b"""[default]
workers = 8
ident = "dstack guest agent"
keep_alive = 10
log_level = "debug"
[default.core]
keys_file = "/k"
data_disks = ["/"]
[default.core.simulator]
mock_attestation_seed = "00"
patch_report_data = true
[default.attestkit]
fault = ["ebusy:2"]
quote_version = 4
[default.attestkit.limits]
body = "1MiB"
[internal]
address = "unix:/var/run/dstack.sock"
reuse = true
[external]
address = "0.0.0.0"
port = 8090
"""
    return [toml, b'{"default":{"attestkit":{"http":"off"}},"global":{"port":1}}', b""]


_TEXTS: Final[tuple[Callable[[str], object], ...]] = (
    parse_address,
    parse_limit,
    Fault.parse,
    EmulatedKernel.parse,
    KernelRelease.parse,
    ReportData.from_hex,
    ReportData.from_text,
    lambda text: seed_from_hex(text, "--seed"),
)


def _option(raw: bytes) -> object:
    """Read the value of an option; the first byte says which."""
    text = raw[1:].decode("utf-8", "surrogateescape")  # as Python takes arguments
    return _TEXTS[raw[0] % len(_TEXTS)](text) if raw else None


def option_samples() -> list[bytes]:
    """Return a good value of each."""
    texts = (
        "127.0.0.1:80",
        "body=1MiB",
        "ebusy:2@1",
        "6.12",
        "6.12.94+deb13-amd64",
        "00ff",
        "text",
        "ab" * 32,
    )
    return [bytes([at]) + text.encode() for at, text in enumerate(texts)] + [b"\0[::1]:8090"]


# -- secrets ---------------------------------------------------------------------------------------

_SECRET: Final = re.compile(rb"(?:5ec2e7|SECRET)[0-9A-Za-z]{6,}")
_MARKED: Final = "5ec2e7" * 10 + "5ec2"  # 32 bytes in hex


def secrets(raw: bytes) -> list[str]:
    """Return what in an input is marked as secret: the first bytes of it, as text."""
    return [found[:12].decode() for found in _SECRET.findall(raw)]


def _keys(_raw: bytes, found: AppKeys) -> None:
    check("no secret in its repr", _MARKED[:12] not in repr(found))


def _key_text(raw: bytes) -> AppKeys:
    return AppKeys.from_json(raw, name=".appkeys.json")


def key_samples() -> list[bytes]:
    """Return files of keys whose secrets are marked."""
    kms = {
        "k256_key": _MARKED,
        "k256_signature": "",
        "env_crypt_key": _MARKED,
        "disk_crypt_key": _MARKED,
        "gateway_app_id": "any",
        "ca_cert": "",
        "key_provider": {"Kms": {"url": "", "pubkey": "00", "tmp_ca_key": "SECRETabcdef"}},
    }
    pem = "-----BEGIN PRIVATE KEY-----\nSECRETabcdefghijklmnop\n-----END PRIVATE KEY-----\n"
    joined = pem.replace("-----END ", "-----END SECRETabcdef")  # where two lines became one
    local, torn = (
        {**kms, "key_provider": {"Local": {"mr": "00", "key": key}}} for key in (pem, joined)
    )
    files = [json.dumps(one).encode() for one in (kms, local, torn)]
    return [*files, data("dstack/simulator/appkeys.json"), files[0] + b" SECRETabcdef"]


_OWN: Final = bytes(range(32))
_EPHEMERAL: Final = bytes(range(32, 64))
_HEAD: Final = x25519_public_key(_EPHEMERAL) + bytes(12)
_SHARED: Final = x25519(_EPHEMERAL, x25519_public_key(_OWN))


def _environment(raw: bytes) -> dict[str, str]:
    sealed = _HEAD + aes_gcm_encrypt(_SHARED, bytes(12), raw)
    return decrypt_env_vars(_OWN, sealed, ("NAME", "A"))


def environment_samples() -> list[bytes]:
    """Return environments in plain text."""
    items = [{"key": "NAME", "value": "SECRETabcdef"}, {"key": "A", "value": "\ud83d\ude00"}]
    return [json.dumps({"env": found}).encode() for found in (items, [], items[:1] * 3)]


def _sealed(raw: bytes) -> dict[str, str]:
    return decrypt_env_vars(_OWN, raw, ("NAME",))


# -- files of the simulator ------------------------------------------------------------------------


def _recorded(found: RecordingFile) -> object:
    """Return all that is in a recording, its errors made."""
    answers: list[object] = []
    for entry in found.entries:
        try:
            answers.append((entry.key, entry.change, entry.answer.get()))
        except AttestKitError as error:
            answers.append((entry.key, type(error), str(error)))
    return found.header, answers, found.complete


def _recorded_host(raw: bytes) -> RecordingFile:
    found = parse_recording(raw)
    host_from_json(found.header)
    return found


def recording_samples() -> list[bytes]:
    """Return recordings with every kind of call and answer."""
    lines: list[dict[str, object]] = [
        {"format": "attestkit recording", "version": 1, "backend": "x"},
        {"ask": "get_quote", "report_data": "00", "answer": "00ff"},
        {"ask": "read_rtmr", "register": 3, "answer": "00"},
        {"ask": "read_rtmr", "register": 3, "as": 3},
        {"ask": "get_quote", "error": "QuoteUnavailableError", "text": "none", "reason": "empty"},
        {"ask": "journal_version", "answer": 1},
        {"change": "extend_rtmr", "register": 3, "digest": "00", "answer": None},
        {"ask": "get_snp_report", "answer": {"report": "00", "certificates": ""}},
        {"ask": "journal_events", "answer": {"keep": 0, "add": []}},
        {"end": 8},
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    host = {
        "app_compose": {"error": "ConfigError", "text": "none", "reason": "missing"},
        "vm_config": {"answer": "{}"},
    }
    header = json.dumps({**lines[0], "host": host}).encode()
    return [text + b"\n", text[:400], header + b"\n", b""]


@cache
def _folder() -> StateFolder:
    """Return a folder of this process, without the lock of one that is in use."""
    path = Path(tempfile.mkdtemp(prefix="attestkit-fuzz-state-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    folder = object.__new__(StateFolder)
    folder.path = path
    return folder


def _state(raw: bytes) -> State | None:
    folder = _folder()
    (folder.path / REGISTERS).write_bytes(raw)
    return folder.load()


def _seed(_raw: bytes, found: bytes) -> None:
    check_same("its hex", read_seed(found.hex().encode()), found)


def state_samples() -> list[bytes]:
    """Return the registers of a TD."""
    state = {"boot_id": "id", "launch": "00", "rtmrs": ["00" * 48] * 4}
    return [json.dumps(state).encode(), b"{}"]


def _roots(_raw: bytes, found: SimulatedRoots) -> None:
    check_same("written and read again", SimulatedRoots.from_json(found.to_json()), found)


def root_samples() -> list[bytes]:
    """Return the roots of machines with one root and with all of them."""
    names = ("tdx", "aws-nitro-tpm")
    whole = [simulated_roots(bytes(32), name) for name in names]
    return [roots.to_json() for roots in (*whole, SimulatedRoots(whole[0].platform))]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    policy = obeys(AppraisalPolicy.from_toml, ConfigError, accepted=_policy)
    keys = obeys(_key_text, ConfigError, accepted=_keys, said=repr, secret=secrets)
    config = obeys(_config, ConfigError, accepted=_typed)
    option = obeys(_option, ConfigError, UsageError, longest=2000)
    variables = obeys(_environment, FormatError, secret=secrets)
    sealed = obeys(_sealed, FormatError, VerificationError)
    recording = obeys(_recorded_host, FormatError, said=_recorded)
    return [
        ParserTarget("policy", policy, short(policy_samples, 2048), "policy.dict", 2048),
        ParserTarget("server_config", config, short(config_samples, 2048), "config.dict", 2048),
        ParserTarget("options", option, option_samples, "config.dict", 256),
        ParserTarget("app_keys", keys, short(key_samples), "config.dict"),
        ParserTarget("environment", variables, environment_samples, "config.dict", 1024),
        ParserTarget(
            "sealed_environment",
            sealed,
            lambda: [_HEAD + aes_gcm_encrypt(_SHARED, bytes(12), b'{"env":[]}'), _HEAD],
            max_len=256,
        ),
        ParserTarget("recording", recording, short(recording_samples), "config.dict"),
        ParserTarget(
            "simulator_state", obeys(_state, BackendError), state_samples, "config.dict", 1024
        ),
        ParserTarget(
            "simulated_roots",
            obeys(SimulatedRoots.from_json, FormatError, accepted=_roots),
            root_samples,
            "config.dict",
        ),
        ParserTarget(
            "simulator_seed",
            obeys(read_seed, UsageError, accepted=_seed),
            lambda: [bytes(32), b"ab" * 32 + b"\n"],
            max_len=80,
        ),
    ]
