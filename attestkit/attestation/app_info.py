"""Who the app in the evidence is: read from boot events, or from the sealed configuration.

On platforms whose runtime events are measured, the app's identity is read only from events before
`system-ready`, so that nothing an app emits later can change it; a log without that event names
nobody. Nothing here verifies a signature.
"""

import hmac
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from attestkit import _native
from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit.attestation import nitro_document
from attestkit.attestation.launch.mr_config import MAX_INIT_SCRIPTS, MrConfig, host_data
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GcpTdx,
    NitroEnclave,
    NitroTpm,
    RuntimeEvent,
    SevSnp,
    Tdx,
    td_body,
)
from attestkit.attestation.wire.v1_msgpack import MsgpackReader
from attestkit.errors import FormatError, ReplayError
from attestkit.event_log.runtime_events import runtime_digest, runtime_preimage
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport

__all__ = ["AppInfo", "Known", "decode"]

_BOOT_END = "system-ready"
_BOOTTIME_END = "boot-mr-done"


class AppInfo(NamedTuple):
    """An app's identity; bytes that are missing are empty."""

    app_id: bytes  # 20 bytes
    compose_hash: bytes  # 32 bytes
    instance_id: bytes  # 20 bytes
    device_id: bytes  # 32 bytes
    mr_system: bytes  # 32 bytes
    mr_aggregated: bytes  # 32 bytes
    os_image_hash: bytes  # 32 bytes
    key_provider_info: bytes  # JSON text: {"name":"...","id":"<hex>"}
    init_script_hashes: tuple[bytes, ...] | None  # 32 bytes each, at most 5; None: not known

    def to_dict(self) -> dict[str, object]:
        """Return the form of the agent's JSON: hex text, keys in their order."""
        hashes = self.init_script_hashes
        found: dict[str, Any] = {name: value.hex() for name, value in self._bytes().items()}
        found["init_script_hashes"] = None if hashes is None else [h.hex() for h in hashes]
        return found

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> "AppInfo":
        """Read the form that `to_dict` returns; the hashes of scripts may be missing.

        Raises:
            FormatError: A field is missing or no hex text.
        """
        values = [strict_json.from_hex(fields.get(name), name) for name in cls._fields[:-1]]
        hashes = fields.get("init_script_hashes")
        if hashes is None:
            return cls._make([*values, None])
        if not isinstance(hashes, (list, tuple)) or len(hashes) > MAX_INIT_SCRIPTS:
            raise FormatError("init_script_hashes is not a short array")
        found = tuple([strict_json.from_hex(item, "init_script_hashes", 32) for item in hashes])
        return cls._make([*values, found])

    def to_msgpack(self) -> bytes:
        """Return the form of the certificate extension: an array of 9."""
        import msgspec.msgpack  # late: only who issues certificates pays for it

        return msgspec.msgpack.encode([*self._bytes().values(), self.init_script_hashes])

    @classmethod
    def from_msgpack(cls, data: bytes) -> "AppInfo":
        """Read an array of 9, or one of 8 as agents up to 0.5.11 wrote it.

        Raises:
            FormatError: `data` is something else, or goes on behind the array.
        """
        reader = MsgpackReader(data)
        count = reader.count()
        if count not in {8, 9}:
            raise FormatError(f"app info has 8 or 9 items, not {count}", offset=0)
        values = [reader.blob() for _ in range(8)]
        hashes = None
        if count == 9 and not reader.nil():
            at, size = reader.at, reader.count()
            # Counted first: each would be an object.
            hashes = tuple([reader.blob() for _ in range(min(size, MAX_INIT_SCRIPTS))])
            if size > MAX_INIT_SCRIPTS or any(len(found) != 32 for found in hashes):
                raise FormatError("at most 5 hashes of 32 bytes are allowed", offset=at)
        if left := len(data) - reader.at:
            raise FormatError(f"{left} bytes behind the app info", offset=reader.at)
        return cls._make([*values, hashes])

    def _bytes(self) -> dict[str, bytes]:
        return {name: getattr(self, name) for name in self._fields[:-1]}


class _Identity(NamedTuple):
    """What boot events say."""

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    key_provider_info: bytes
    init_script_hashes: tuple[bytes, ...]

    @property
    def mr_key_provider(self) -> bytes:
        return sha256(self.key_provider_info) if self.key_provider_info else bytes(32)

    def app_info(
        self, device_id: bytes, mr_system: bytes, mr_aggregated: bytes, os_image_hash: bytes
    ) -> AppInfo:
        return AppInfo(
            app_id=self.app_id,
            compose_hash=self.compose_hash,
            instance_id=self.instance_id,
            device_id=device_id,
            mr_system=mr_system,
            mr_aggregated=mr_aggregated,
            os_image_hash=os_image_hash,
            key_provider_info=self.key_provider_info,
            init_script_hashes=self.init_script_hashes,
        )


class Known(NamedTuple):
    """Parts of a TD's evidence that have been read before; it must be the same evidence."""

    quote: Quote | None = None
    digests: Sequence[bytes] | None = None  # of all runtime events beside the log


_NOTHING = Known()


def decode(
    evidence: Evidence,
    *,
    config: str = "",
    boottime: bool = False,
    device: bytes = b"",
    known: Known = _NOTHING,
) -> AppInfo:
    """Read the identity of the app.

    Args:
        evidence: What to read.
        config: The VM's configuration, if not the one inside the evidence.
        boottime: Read what was known when keys were asked for: the log up to `boot-mr-done`, and
            no key provider. Changes nothing on SEV-SNP.
        device: What names the device, once verified: the PPID of the PCK certificate or the module
            id; nothing as long as the evidence is not verified. SEV-SNP has its chip id.
        known: What the caller has read of the evidence already, and need not be read again.

    Raises:
        FormatError: The evidence, or a document inside it, is malformed.
        ReplayError: HOST_DATA is not the hash of the configuration document, or PCR 14 not the
            replay of the events.
    """
    platform, stack = evidence
    os_image_hash = VmConfig.parse(config or stack.config).os_image_hash
    if isinstance(platform, SevSnp):
        return _sev_snp(platform, os_image_hash)
    device_id = sha256(device)
    events = _until(stack.runtime_events, _BOOTTIME_END) if boottime else stack.runtime_events
    if isinstance(platform, NitroEnclave):
        return _nitro_enclave(platform, events, os_image_hash, device_id)
    who = _identity(stack.runtime_events, boottime=boottime)
    if isinstance(platform, Tdx):
        system, aggregated = _tdx_registers(platform, who, events, known)
    elif isinstance(platform, GcpTdx):
        system, aggregated = _gcp_registers(platform, who, events, os_image_hash)
    else:
        system, aggregated = _nitro_tpm_registers(platform, who, events, stack.runtime_events)
    return who.app_info(device_id, sha256(system), sha256(aggregated), os_image_hash)


def _identity(events: Sequence[RuntimeEvent], *, boottime: bool) -> _Identity:
    """Read events before the one that ends the boot; without that one, nobody booted here."""
    ends = {_BOOT_END, _BOOTTIME_END} if boottime else {_BOOT_END}
    end = next((at for at, event in enumerate(events) if event.event in ends), 0)
    found = _read(events[:end])
    return found._replace(key_provider_info=b"") if boottime else found


def _read(events: Sequence[RuntimeEvent]) -> _Identity:
    """Read what events say; of several that have one name, the first counts."""
    first = {event.event: event.payload for event in reversed(events)}
    return _Identity(
        first.get("app-id", b""),
        first.get("compose-hash", b""),
        first.get("instance-id", b""),
        first.get("key-provider", b""),
        tuple([event.payload for event in events if event.event == "init-script-hash"]),
    )


def _until(events: Sequence[RuntimeEvent], name: str) -> Sequence[RuntimeEvent]:
    """Return the events up to and with the first called `name`; all of them without one."""
    for at, event in enumerate(events):
        if event.event == name:
            return events[: at + 1]
    return events


def _replay_sha384(events: Sequence[RuntimeEvent], digests: Sequence[bytes] | None = None) -> bytes:
    if digests is None:
        digests = [runtime_digest(*event) for event in events]
    return _native.replay(bytes(len(digests)), b"".join(digests))[0]


def _replay_sha256(events: Sequence[RuntimeEvent]) -> bytes:
    register = bytes(32)
    for event in events:
        register = sha256(register + sha256(runtime_preimage(*event)))
    return register


def _tdx_registers(
    platform: Tdx,
    who: _Identity,
    events: Sequence[RuntimeEvent],
    known: Known,
) -> tuple[bytes, bytes]:
    body = td_body(platform.quote if known.quote is None else known.quote)
    launch = body.mr_td + body.rtmr0 + body.rtmr1 + body.rtmr2
    owner = body.mr_config_id + body.mr_owner + body.mr_owner_config
    digests = None if known.digests is None else known.digests[: len(events)]
    replayed = _replay_sha384(events, digests)
    aggregated = launch + replayed + (owner if any(owner) else b"")
    return launch + who.mr_key_provider, aggregated


def _gcp_registers(
    platform: GcpTdx, who: _Identity, events: Sequence[RuntimeEvent], os_image_hash: bytes
) -> tuple[bytes, bytes]:
    pcrs = {p.number: p.value for p in platform.tpm_quote.pcr_values if p.algorithm == "sha256"}
    for index in (0, 2):
        if index not in pcrs:
            raise FormatError(f"the TPM quote has no PCR {index}")
    return os_image_hash + who.mr_key_provider, pcrs[0] + pcrs[2] + _replay_sha256(events)


def _nitro_tpm_registers(
    platform: NitroTpm,
    who: _Identity,
    events: Sequence[RuntimeEvent],
    all_events: Sequence[RuntimeEvent],
) -> tuple[bytes, bytes]:
    document = nitro_document.read_nitro_document(platform.attestation_doc)
    quoted, replayed = document.pcr(14), _replay_sha384(all_events)
    if quoted != replayed:
        raise ReplayError(f"PCR14 mismatch, quoted: {quoted.hex()}, replayed: {replayed.hex()}")
    launch = document.pcr(4) + document.pcr(7) + document.pcr(12)
    return launch + who.mr_key_provider, launch + _replay_sha384(events)


def _nitro_enclave(
    platform: NitroEnclave,
    events: Sequence[RuntimeEvent],
    os_image_hash: bytes,
    device_id: bytes,
) -> AppInfo:
    """Read an enclave's identity, which is its image's.

    There is no runtime register and no boot sequence: the agent writes one event `app-id`, nothing
    authenticates it, and apps cannot emit others. So it is read without asking for `system-ready`.
    """
    document = nitro_document.read_nitro_document(platform.nsm_quote)
    registers = sha256(document.pcr(0) + document.pcr(1) + document.pcr(2))
    who = _read(_until(events, _BOOT_END))
    found = who.app_info(device_id, registers, registers, os_image_hash)
    return found._replace(compose_hash=os_image_hash)


def _sev_snp(platform: SevSnp, os_image_hash: bytes) -> AppInfo:
    report = SnpReport.parse(platform.report)
    expected = host_data(platform.mr_config)
    if not hmac.compare_digest(report.host_data, expected):
        raise ReplayError(
            f"amd sev-snp HOST_DATA mismatch, quoted: {report.host_data.hex()}, "
            f"expected: {expected.hex()}"
        )
    document = MrConfig.parse(platform.mr_config)
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
