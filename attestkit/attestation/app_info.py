"""AppInfo: the identity of the application, from boot events or the mr_config document.

On platforms that measure runtime events, the identity comes only from events before
`system-ready`, so that the application cannot change it later; without that event the identity is
empty. Signatures are not verified here.
"""

import hmac
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from attestkit import _native
from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._formats.msgpack import MsgpackReader
from attestkit.attestation.launch import mr_config
from attestkit.attestation.launch.vm_config import read_os_image_hash
from attestkit.attestation.nitro import read_nitro_document
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent
from attestkit.errors import FormatError, ReplayError
from attestkit.event_log.runtime_events import runtime_digest, runtime_preimage
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.tpm.pcrs import extend

_BOOT_END = "system-ready"
_BOOTTIME_END = "boot-mr-done"
_LARGEST = 65_536  # bytes of a certificate extension; a real one has about 400
_CACHED_SIZE = 512  # bytes of hashed data; longer data are not cached


class AppInfo(NamedTuple):
    """Identity of an application, with dstack's names; missing values are empty.

    Of a TD, `mr_system` is a SHA-256 over MRTD, RTMR0 to RTMR2 and the key provider;
    `mr_aggregated` is one over the same registers and the boot events in RTMR3. Those of other
    platforms are over their own measurements. `device_id` is the SHA-256 of the device's identity.
    """

    app_id: bytes  # 20 bytes
    compose_hash: bytes  # 32 bytes
    instance_id: bytes  # 20 bytes
    device_id: bytes  # 32 bytes
    mr_system: bytes  # 32 bytes
    mr_aggregated: bytes  # 32 bytes
    os_image_hash: bytes  # 32 bytes
    key_provider_info: bytes  # JSON text: {"name":"...","id":"<hex>"}
    init_script_hashes: tuple[bytes, ...] | None  # 32 bytes each, at most 5; None if unknown

    def to_dict(self) -> dict[str, object]:
        """Return the JSON object of the guest agent API: hex by field name, in order of the fields.

        `init_script_hashes` is an array of hex, or None.
        """
        hashes = self.init_script_hashes
        found: dict[str, Any] = {name: value.hex() for name, value in self._bytes().items()}
        found["init_script_hashes"] = None if hashes is None else [h.hex() for h in hashes]
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> "AppInfo":
        """Parse `fields`, the result of `to_dict`; `init_script_hashes` is optional.

        Raises:
            FormatError: If a field is missing or not hex, or `init_script_hashes` is not an array
                of at most 5 hashes of 32 bytes. Other sizes are not checked.
        """
        values = [strict_json.from_hex(fields.get(name), name) for name in cls._fields[:-1]]
        return cls._make([*values, mr_config.read_script_hashes(fields)])

    def to_msgpack(self, *, array: Literal[8, 9] | None = None) -> bytes:
        """Return the content of the certificate extension: a msgpack map of 9 entries.

        With `array`, return an array of the first 8 or 9 values instead, as guest agents before
        dstack 0.6 wrote it; agents up to 0.5.11 wrote 8, without `init_script_hashes`.
        """
        import msgspec.msgpack  # lazy: only needed to issue certificates

        fields = {**self._bytes(), "init_script_hashes": self.init_script_hashes}
        return msgspec.msgpack.encode([*fields.values()][:array] if array else fields)

    @classmethod
    def from_msgpack(cls, data: bytes) -> "AppInfo":
        """Parse the content of the certificate extension, at most 65,536 bytes of msgpack.

        It is a map with keys in any order, of which unknown ones are skipped; or an array of the
        values, of which agents up to version 0.5.11 wrote 8. `init_script_hashes` is optional.

        Raises:
            FormatError: If `data` is malformed or too large, lacks a field, has one twice, has
                over 5 `init_script_hashes` or one not of 32 bytes, or has bytes after the value.
        """
        if len(data) > _LARGEST:
            message = f"app info: {len(data)} bytes exceed the limit of {_LARGEST}"
            raise FormatError(message, reason="too_large")
        reader = MsgpackReader(data)
        found: dict[str, Any] = {"init_script_hashes": None, **_read_fields(reader)}
        reader.finish("app info")
        if missing := [name for name in cls._fields if name not in found]:
            raise FormatError(f"app info: {missing[0]}: missing", reason="missing", offset=0)
        return cls(**found)

    def _bytes(self) -> dict[str, bytes]:
        return {name: getattr(self, name) for name in self._fields[:-1]}


def _read_fields(reader: MsgpackReader) -> dict[str, Any]:
    """Return the known fields of a msgpack map or array, by name."""
    is_map, count = reader.header()
    if not is_map:
        if count not in {8, 9}:
            raise FormatError(f"app info: {count} items, not 8 or 9", reason="wrong_size", offset=0)
        return {name: _read_field(reader, name) for name in AppInfo._fields[:count]}
    found: dict[str, Any] = {}
    for _ in range(count):
        at = reader.at
        name = reader.text()
        if name in found:
            raise FormatError(f"app info: {name} occurs twice", reason="duplicate", offset=at)
        if name in AppInfo._fields:
            found[name] = _read_field(reader, name)
        else:
            reader.skip()
    return found


def _read_field(reader: MsgpackReader, name: str) -> bytes | tuple[bytes, ...] | None:
    if name != "init_script_hashes":
        return reader.blob()
    if reader.nil():
        return None
    at, size = reader.at, reader.count()
    # Limit the number of objects before checking the count.
    hashes = tuple([reader.blob() for _ in range(min(size, mr_config.MAX_INIT_SCRIPTS))])
    if size > mr_config.MAX_INIT_SCRIPTS or any(len(found) != 32 for found in hashes):
        message = f"init_script_hashes: must be up to {mr_config.MAX_INIT_SCRIPTS} of 32 bytes each"
        raise FormatError(message, reason="wrong_value", offset=at)
    return hashes


class ParsedParts(NamedTuple):
    """Parts of the same TD's evidence that the caller has parsed already."""

    quote: Quote | None = None
    digests: Sequence[bytes] | None = None  # SHA-384 of all runtime events of the stack, in order


_NOTHING = ParsedParts()


def read_app_info(
    evidence: Evidence,
    *,
    boottime: bool = False,
    key_time: bool = False,
    device: bytes = b"",
    parsed: ParsedParts = _NOTHING,
) -> AppInfo:
    """Return the identity of the application in the evidence.

    All fields are empty on platforms that measure no app: Azure, a TPM alone, and SEV-SNP on Google
    Cloud.

    Args:
        evidence: The decoded evidence.
        boottime: Ignore all events after dstack's event `boot-mr-done`, for mr_aggregated too, and
            leave the key provider empty, as at a guest's key request. Has no effect on SEV-SNP.
        key_time: As a KMS does, whose guests have no event `system-ready` yet: the events before
            `boot-mr-done` give the identity, which is empty without that event; all events
            give mr_aggregated. Ignored with `boottime`; has no effect on SEV-SNP.
        device: Verified identity of the device: the PPID of the PCK certificate, or the module id
            of a Nitro Enclave; empty if not verified. Its SHA-256, also that of no bytes, is
            `device_id`. Ignored on SEV-SNP, where it is the SHA-256 of the report's chip id.
        parsed: Parts of the evidence that are parsed already.

    Raises:
        FormatError: If the evidence, or a document in it, is malformed, or lacks a PCR.
        ReplayError: If HOST_DATA is not the hash of the mr_config document, or PCR 14 is not the
            replay of the events.
    """
    platform, stack = evidence
    os_image_hash = read_os_image_hash(stack.config)
    if isinstance(platform, parts.SevSnp):
        return _sev_snp(platform, os_image_hash)
    device_id = _sha256_of_many(device)
    all_events = stack.runtime_events
    events = _events_until(all_events, _BOOTTIME_END) if boottime else all_events
    if isinstance(platform, parts.NitroEnclave):
        return _nitro_enclave(platform, events, os_image_hash, device_id)
    if key_time and not boottime:
        identity = _key_time_identity(all_events)
    else:
        identity = _boot_identity(all_events, boottime=boottime)
    preimages = _register_preimages(evidence, identity, events, os_image_hash, parsed)
    if preimages is None:
        return _identity(())
    system, aggregated = preimages
    return AppInfo(
        identity.app_id,
        identity.compose_hash,
        identity.instance_id,
        device_id,
        _sha256_of_many(system),
        sha256(aggregated),
        os_image_hash,
        identity.key_provider_info,
        identity.init_script_hashes,
    )


def _boot_identity(events: Sequence[RuntimeEvent], *, boottime: bool) -> AppInfo:
    """Return the identity from the events before `system-ready`; empty without that event.

    With `boottime`, `boot-mr-done` ends them too, and the key provider is left out.
    """
    ends = (_BOOT_END, _BOOTTIME_END) if boottime else (_BOOT_END,)
    for end, event in enumerate(events):
        if event.event in ends:
            found = _identity(events[:end])
            return found._replace(key_provider_info=b"") if boottime else found
    return _identity(())


def _key_time_identity(events: Sequence[RuntimeEvent]) -> AppInfo:
    """Return the identity from the events before `boot-mr-done`; empty without that event.

    The key provider is that of the first event `key-provider` before `system-ready`, if any.
    """
    names = [event.event for event in events]
    end = names.index(_BOOTTIME_END) if _BOOTTIME_END in names else 0
    last = names.index(_BOOT_END) if _BOOT_END in names else len(names)
    found = _identity(events[: min(end, last)])
    return found._replace(key_provider_info=_identity(events[:last]).key_provider_info)


def _identity(events: Sequence[RuntimeEvent]) -> AppInfo:
    """Return the identity from events; the first of several events with one name is used."""
    get = {event.event: event.payload for event in reversed(events)}.get
    scripts = tuple([event.payload for event in events if event.event == "init-script-hash"])
    app_id, compose_hash = get("app-id", b""), get("compose-hash", b"")
    instance_id, key_provider = get("instance-id", b""), get("key-provider", b"")
    return AppInfo(app_id, compose_hash, instance_id, b"", b"", b"", b"", key_provider, scripts)


def _mr_key_provider(identity: AppInfo) -> bytes:
    info = identity.key_provider_info
    return _sha256_of_many(info) if info else bytes(32)


def _sha256_of_many(data: bytes) -> bytes:
    """Return the SHA-256 of data that are equal in much evidence; cached for short data."""
    return _cached_sha256(data) if len(data) <= _CACHED_SIZE else sha256(data)


_cached_sha256 = lru_cache(1024)(sha256)


def _events_until(events: Sequence[RuntimeEvent], name: str) -> Sequence[RuntimeEvent]:
    """Return the events up to and including the first one named `name`; without one, all."""
    for at, event in enumerate(events):
        if event.event == name:
            return events[: at + 1]
    return events


def _replay_sha384(events: Sequence[RuntimeEvent], digests: Sequence[bytes] | None = None) -> bytes:
    if digests is None:
        digests = [runtime_digest(*event) for event in events]
    return _native.replay(bytes(len(digests)), b"".join(digests))[0]


def _replay_sha256(events: Sequence[RuntimeEvent]) -> bytes:
    return extend("sha256", bytes(32), [sha256(runtime_preimage(*event)) for event in events])


def _register_preimages(
    evidence: Evidence,
    identity: AppInfo,
    events: Sequence[RuntimeEvent],
    os_image_hash: bytes,
    parsed: ParsedParts,
) -> tuple[bytes, bytes] | None:
    """Return the two byte strings whose SHA-256 are mr_system and mr_aggregated.

    Args:
        evidence: The evidence, with the launch measurements.
        identity: Identity from the boot events; its key provider is part of mr_system.
        events: The runtime events that mr_aggregated covers.
        os_image_hash: 32 bytes, or empty if unknown.
        parsed: Parts of the evidence that were parsed before.

    Returns:
        Both byte strings; None for platforms that measure no boot events of an app.
    """
    platform, stack = evidence
    if isinstance(platform, parts.Tdx):
        return _tdx_registers(platform, identity, events, parsed)
    if isinstance(platform, parts.GcpTdx):
        return _gcp_registers(platform, identity, events, os_image_hash)
    if isinstance(platform, parts.NitroTpm):
        all_events = stack.runtime_events
        is_bare = not all_events and not stack.config
        return _nitro_tpm_registers(platform, identity, events, all_events, is_bare=is_bare)
    return None


def _tdx_registers(
    platform: parts.Tdx, identity: AppInfo, events: Sequence[RuntimeEvent], parsed: ParsedParts
) -> tuple[bytes, bytes]:
    body = parts.td_body(platform.quote if parsed.quote is None else parsed.quote)
    launch = body.mrtd + body.rtmr0 + body.rtmr1 + body.rtmr2
    owner = body.mr_config_id + body.mr_owner + body.mr_owner_config
    digests = None if parsed.digests is None else parsed.digests[: len(events)]
    aggregated = launch + _replay_sha384(events, digests) + (owner if any(owner) else b"")
    return launch + _mr_key_provider(identity), aggregated


def _gcp_registers(
    platform: parts.GcpTdx, identity: AppInfo, events: Sequence[RuntimeEvent], os_image_hash: bytes
) -> tuple[bytes, bytes]:
    pcrs = {p.number: p.value for p in platform.tpm_quote.pcr_values if p.algorithm == "sha256"}
    for index in (0, 2):
        if index not in pcrs:
            problem = f"TPM quote: PCR {index} is not quoted; request a quote that selects it"
            raise FormatError(problem, reason="missing")
    return os_image_hash + _mr_key_provider(identity), pcrs[0] + pcrs[2] + _replay_sha256(events)


def _nitro_tpm_registers(
    platform: parts.NitroTpm,
    identity: AppInfo,
    events: Sequence[RuntimeEvent],
    all_events: Sequence[RuntimeEvent],
    *,
    is_bare: bool,
) -> tuple[bytes, bytes]:
    """Return the data hashed to mr_system and mr_aggregated; PCR 14 must match `all_events`.

    A bare document (`is_bare`) may have another PCR 14: it need not be of a dstack guest.
    """
    document = read_nitro_document(platform.attestation_doc, tpm=True)
    quoted, replayed = document.pcr(14), _replay_sha384(all_events)
    if quoted != replayed and not is_bare:
        message = f"PCR14 mismatch, quoted: {quoted.hex()}, replayed: {replayed.hex()}"
        raise ReplayError(message, reason="pcr_mismatch")
    launch = document.pcr(4) + document.pcr(7) + document.pcr(12)
    return launch + _mr_key_provider(identity), launch + _replay_sha384(events)


def _nitro_enclave(
    platform: parts.NitroEnclave,
    events: Sequence[RuntimeEvent],
    os_image_hash: bytes,
    device_id: bytes,
) -> AppInfo:
    """Return the identity of a Nitro Enclave, which is the identity of its image.

    Enclaves have no runtime register and no boot sequence: the agent writes one unauthenticated
    event `app-id`, and applications cannot emit events. So `system-ready` is not required.

    `os_image_hash` is the image's hash; `device_id` is the SHA-256 of the device's identity.
    """
    document = read_nitro_document(platform.nsm_quote, tpm=False)
    registers = sha256(document.pcr(0) + document.pcr(1) + document.pcr(2))
    return _identity(_events_until(events, _BOOT_END))._replace(
        compose_hash=os_image_hash,
        device_id=device_id,
        mr_system=registers,
        mr_aggregated=registers,
        os_image_hash=os_image_hash,
    )


def _sev_snp(platform: parts.SevSnp, os_image_hash: bytes) -> AppInfo:
    report = SnpReport.parse(platform.report)
    expected = mr_config.host_data(platform.mr_config)
    if not hmac.compare_digest(report.host_data, expected):
        raise ReplayError(
            f"amd sev-snp HOST_DATA mismatch, quoted: {report.host_data.hex()}, "
            f"expected: {expected.hex()}",
            reason="host_data_mismatch",
        )
    document = mr_config.MrConfig.parse(platform.mr_config)
    return AppInfo(
        app_id=document.app_id,
        compose_hash=document.compose_hash,
        instance_id=document.instance_id,
        device_id=sha256(report.chip_id),
        mr_system=sha256(report.measurement),
        mr_aggregated=sha256(report.measurement + report.host_data),
        os_image_hash=os_image_hash,
        key_provider_info=document.key_provider_info,
        init_script_hashes=document.init_script_hashes,
    )
