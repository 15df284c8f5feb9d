"""docs/security/bounds.md matches the code: every limit, and the costs of every parser."""

import json
import re
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from attestkit._crypto.x509 import app_certificates
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats import toml
from attestkit._formats.typed_json import _LARGEST as LARGEST_FILE
from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.launch import mr_config, vm_config
from attestkit.attestation.wire import agent_response
from attestkit.backends.linux import guest_logs as ccel
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.recording import recording_file
from attestkit.backends.simulator.soft_td import StateFolder
from attestkit.collateral import Collateral, cache
from attestkit.dstack import env_encryption
from attestkit.dstack.app_compose import AppCompose
from attestkit.dstack.sys_config import SysConfig
from attestkit.errors import AttestKitError, BackendError, FormatError
from attestkit.event_log import EventLog, TpmEventLog, WireEvent, agent_json
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from attestkit.event_log.runtime_events import check_runtime_events
from attestkit.gpu import GpuEvidence
from attestkit.gpu.evidence import MAX_SIZE as MAX_GPU_EVIDENCE
from attestkit.gpu.rim.document import MAX_SIZE as XML_SIZE
from attestkit.gpu.rim.manifest import Rim
from attestkit.keys import AppKeys, key_file
from attestkit.quote import Quote
from attestkit.serve.docker import responses
from attestkit.verifier.ear.result_token import verify_ear
from attestkit.verifier.ear.signed_token import MAX_TOKEN, EarPublicKey
from attestkit.verifier.evidence.formats import EvidenceBundle
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.policy.toml.reader import parse as parse_policy
from benchmarks import growth_hostile
from tests.bounds.counting import peak
from tests.bounds.fitting import TOO_MUCH, enters, shortened
from tests.bounds.parsers import PARSERS, Parser, certificate, extension, tlv
from tests.long_runs.records import ROOT
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.ear.ears import ED25519, NOW
from tests.verifier.platforms import intel

DOCUMENT = (ROOT / "docs/security/bounds.md").read_text(encoding="utf-8")
LIMITS = re.findall(r"^\| .* \| ([0-9,]+) \| `([\w.]+)` \|$", DOCUMENT, re.MULTILINE)
ROW = re.compile(
    r"^\| ([^|]+) \| ([^|]+) \| ([0-9,]+) \|(?: -?[0-9.]+ \|){3} ([0-9]+) \| ([0-9]+) \|\n",
    re.MULTILINE,
)
COSTS = ROW.findall(DOCUMENT)
DEAREST = {
    *("container's log, byte by byte", "container's text, byte by byte", "terminal's log"),
    *("TOML", "policy", "server's configuration", "list of an engine"),
    *("CEL in CBOR", "evidence in CBOR", "evidence in msgpack"),
    *("certificate", "SGX extension"),
}
"""Readers that take half a second or more for their row's input; the slow tests have them."""


def constant(path: str) -> Any:
    """Return the value of a dotted path: a module constant, or a default of the server's Limits."""
    module, _, name = path.rpartition(".")
    if module.endswith(".Limits"):
        return import_module(module.removesuffix(".Limits")).Limits._field_defaults[name]
    return getattr(import_module(module), name)


def test_documented_limit_equals_constant() -> None:
    """Each row names a constant and its value."""
    documented = {path: int(value.replace(",", "")) for value, path in LIMITS}
    assert documented == {path: constant(path) for path in documented}


def test_documented_limits_are_all_parsed() -> None:
    """Every row of the table matches the pattern of the test."""
    rows = DOCUMENT.partition("## Limits")[2].partition("\n## ")[0].count("\n| ")
    assert len(LIMITS) == rows - 2 > 50  # without the header and the line below it


def test_documented_costs_match_parsers() -> None:
    """Every parser has a row with its bounds and one of its shapes."""
    assert [name for name, *_ in COSTS] == list(PARSERS)
    for name, shape, _, memory, steps in COSTS:
        parser = PARSERS[name]
        assert (int(memory), int(steps)) == (parser.memory, parser.steps)
        assert shape in parser.shapes


@pytest.mark.parametrize(
    "cost",
    [
        pytest.param(cost, id=cost[0], marks=[pytest.mark.slow] if cost[0] in DEAREST else [])
        for cost in COSTS
    ],
)
@pytest.mark.usefixtures("no_collector")  # it takes three quarters of the time, for no garbage
def test_documented_cost_is_of_input_read(cost: tuple[str, ...]) -> None:
    """The input of each row is not rejected for its size or count."""
    name, shape, size, *_ = cost
    parser = PARSERS[name]
    make, most = parser.shapes[shape], min(parser.most, growth_hostile.MOST_BYTES)
    data = make(shortened(make, most))
    if f"{len(data):,}" != size:
        # Then it is that of the largest input that is read: the next one is not. To search for it
        # by reading inputs takes ten times as long.
        assert not enters(parser, data)
        beyond = bisect_right(range(most), int(size.replace(",", "")), key=lambda n: len(make(n)))
        data = make(beyond - 1)
        assert not enters(parser, make(beyond))
    assert f"{len(data):,}" == size
    assert len(data) <= most
    assert enters(parser, data)


RECORDING = b'{"format":"attestkit recording","version":1}'
TOO_LONG: dict[str, tuple[Callable[[bytes], object], int]] = {
    "quote": (Quote.parse, 131_072),
    "CCEL": (EventLog.from_ccel, 1 << 24),
    "TPM log": (TpmEventLog.parse, 1 << 24),
    "agent's log": (EventLog.from_json, agent_json.MAX_TEXT),
    "CEL": (EventLog.from_cel, 1 << 24),
    "evidence": (Attestation.from_bytes, MAX_SIZE),
    "evidence of GPUs": (GpuEvidence.from_json, MAX_GPU_EVIDENCE),
    "manifest of a GPU": (Rim.parse, XML_SIZE),
    "agent's answer": (Attestation.from_agent_response, agent_response._LARGEST),
    "vm_config": (lambda data: vm_config.VmConfig.parse(data.decode()), vm_config._LARGEST),
    "mr_config": (mr_config.MrConfig.parse, mr_config._LARGEST),
    "app-compose": (AppCompose.parse, LARGEST_FILE),
    "sys-config": (SysConfig.parse, LARGEST_FILE),
    "app keys": (AppKeys.from_json, key_file.LARGEST),
    "sealed environment": (
        lambda data: env_encryption.open_sealed(bytes(32), data),
        env_encryption._LARGEST,
    ),
    "certificate": (app_certificates.read_certificate, app_certificates._LARGEST),
    "certificate of AMD or AWS": (read_path_certificate, 16_384),
    "collateral": (Collateral.from_json, 1 << 24),
    "bundle": (EvidenceBundle.from_json, 1 << 25),
    "signed verdict": (
        lambda data: verify_ear(data, ED25519.public, any_freshness=True, now=NOW),
        MAX_TOKEN,
    ),
    "keys of signed verdicts": (EarPublicKey.from_jwks, 65_536),
    "TOML": (toml.decode, toml.LARGEST),
    "list of an engine": (responses.read_list, responses.MAX_LIST),
    "answer of an engine": (responses.read_container, responses.MAX_ANSWER),
}


@every_case("name", TOO_LONG)
def test_input_over_limit_is_too_large(name: str) -> None:
    """Input over the limit is rejected as too large; at the limit, for its content."""
    read, limit = TOO_LONG[name]
    with pytest.raises(AttestKitError) as info:
        read(b" " * (limit + 1))
    assert info.value.reason in TOO_MUCH
    assert not enters(Parser(read, {}, 0, 0), b" " * (limit + 1))
    if limit < 1 << 21:
        with pytest.raises(AttestKitError) as info:
            read(b"?" * limit)
        assert info.value.reason not in TOO_MUCH


def test_recording_with_many_lines_is_rejected_unsplit() -> None:
    """Lines are counted before they are split into objects."""
    with raises(FormatError, "too_many"):
        recording_file.parse_recording(RECORDING + b"\n" * (recording_file.MOST + 4))


def test_key_usage_has_at_most_9_bits() -> None:
    """Only the nine defined bits are read."""
    with raises(FormatError, "too_large"):
        read_path_certificate(certificate(extension(b"\x55\x1d\x0f", tlv(3, b"\0" + b"\xff" * 3))))
    found = read_path_certificate(certificate(extension(b"\x55\x1d\x0f", tlv(3, b"\7\xff\x80"))))
    assert found.key_usage == frozenset(range(9))


def test_state_file_over_limit_is_rejected(tmp_path: Path) -> None:
    """A state file over its limit is not read to its end."""
    folder = StateFolder(tmp_path)
    try:
        (tmp_path / "simulator.registers").write_bytes(b" " * 4097)
        (tmp_path / "simulator.seed").write_bytes(b" " * 4097)
        with raises(BackendError, "state"):
            folder.load()
        with raises(BackendError, "state"):
            folder.seed(bytes)
    finally:
        folder.close()


FILLED = 64 << 20  # bytes; larger than any limit


def test_cached_collateral_over_limit_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file over the limit is treated as missing, and not read to its end."""
    key: cache.Key = ("https://pccs", "tdx", "fmspc", "platform")
    cache.CollateralCache(tmp_path, clock=lambda: intel.NOW).put(key, intel.collateral())
    [file] = tmp_path.glob("*.json")
    size = file.stat().st_size

    def found() -> Collateral | None:
        return cache.CollateralCache(tmp_path, clock=lambda: intel.NOW).get(key)

    monkeypatch.setattr(cache, "_FILE_LIMIT", size)
    assert found() == intel.collateral()
    monkeypatch.setattr(cache, "_FILE_LIMIT", size - 1)
    assert found() is None
    with file.open("ab") as writer:
        writer.truncate(FILLED)
    assert peak(found) < FILLED // 4


def test_ccel_file_over_limit_is_rejected(tmp_path: Path) -> None:
    """A file over the limit, configured as CCEL table, is not read to its end."""
    with (tmp_path / "log").open("wb") as file:
        file.truncate(FILLED)
    paths = KernelPaths(ccel_file=tmp_path / "log")

    def read() -> None:
        with raises(BackendError, "too_large"):
            ccel.read_boot_log(paths)

    assert peak(read) < FILLED


LONG = "k" * 100_000


@every_case(
    ("read", "data"),
    [
        (mr_config.MrConfig.parse, f'{{"{LONG}":0}}'.encode()),
        (EventLog.from_json, f'[{{"{LONG}":0,"{LONG}":0}}]'.encode()),
        (
            lambda events: check_runtime_events(EventLog.from_wire(events).events),
            [WireEvent(3, RUNTIME_EVENT_TYPE, bytes(48), f"{LONG}:", b"")],
        ),
        (
            lambda events: check_runtime_events(EventLog.from_wire(events).events),
            [WireEvent(0, RUNTIME_EVENT_TYPE, bytes(48), LONG, b"")],
        ),
        (AppKeys.from_json, f'{{"{LONG}":0,"{LONG}":0}}'.encode()),
        (AppCompose.parse, f'{{"{LONG}":0,"{LONG}":0}}'.encode()),
        (EvidenceBundle.from_json, f'{{"version":1,"{LONG}":0}}'.encode()),
        (toml.decode, LONG.encode()),
    ],
)
def test_error_shortens_untrusted_names(read: Callable[[Any], object], data: object) -> None:
    """Untrusted names are shortened in errors, and therefore in logs."""
    with pytest.raises(AttestKitError) as info:
        read(data)
    assert len(str(info.value)) < 500


DIGITS = "ab" * 50_000
COMPOSE = {"manifest_version": 1, "name": "", "runner": "bash", "key_provider_id": DIGITS}


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (AppCompose.parse, json.dumps(COMPOSE).encode()),
        (SysConfig.parse, json.dumps({"vm_config": f'{{"os_image_hash":"{DIGITS}"}}'}).encode()),
        (
            AppKeys.from_json,
            json.dumps({"ca_cert": "", "key_provider": {"Kms": {"pubkey": DIGITS}}}).encode(),
        ),
        (
            lambda data: parse_policy(data, "policy", AppraisalPolicy),
            f'preset="strict"\napp_id="{DIGITS}"'.encode(),
        ),
    ],
)
def test_hex_parsing_memory_is_bounded(read: Callable[[bytes], object], data: bytes) -> None:
    """Hex is not checked by a regular expression that takes 75 bytes for each digit pair."""

    def call() -> None:
        with suppress(AttestKitError):
            read(data)

    call()
    assert peak(call) < 40 * len(data)
