"""Boot of an app in two phases, with keys from a KMS in between.

Phase 1 emits the events up to `boot-mr-done`; then the keys are fetched and checked, and the key
file is written; phase 2 emits `os-image-hash`, `key-provider` and the rest.

The key file is written before phase 2, because a log that names a key provider then always has a
file with the keys of that provider beside it. A crash in phase 1 or before the file is replaced
leaves a log without key provider, so the keys are fetched again, and a KMS releases the same ones
to the same app. A crash after that and before `key-provider` does so too, and the file, which
nothing refers to yet, is replaced by an equal one; a file of an earlier boot is never used in its
place, because the KMS may have withdrawn its permission since. A crash later, in phase 2 or after
it, leaves a log that names the provider of the file, whose keys are used without the KMS; if the
file is gone, they are fetched with the whole log, and must be of the provider in it.
"""

import hmac
import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from attestkit._formats.strict_json import decode_strictly
from attestkit._system.clock import current_time
from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v2, nitro_tpm_pcr8
from attestkit.attestation.wire.evidence_parts import NitroTpm
from attestkit.attester import Attester
from attestkit.attester.evidence_source import NO_REGISTERS, BootSource
from attestkit.backends.base import Backend, BootHost
from attestkit.dstack.boot_sequence import Launch, events_after_keys, events_before_keys, is_start
from attestkit.errors import (
    ConfigError,
    FormatError,
    KmsError,
    SignatureError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.event_log import Event
from attestkit.keys import AppKeys
from attestkit.keys.key_chain import recover_kms_root
from attestkit.kms.answers import FetchedKeys, not_proven
from attestkit.kms.client import KmsClient
from attestkit.kms.https_call import TimeLimits
from attestkit.kms.root import KmsRoot, find_root, require_roots
from attestkit.kms.tls_chain import SEALED_CONFIGURATION
from attestkit.quote import TdQuoteBody
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier.app_identity import sealed_for_kms

if TYPE_CHECKING:
    from attestkit.verifier import Verifier

_CONFIG_PCR = 8  # dstack extends it by the configuration id (mr_config)
FIRST_USE: Final = "first-use"
"""Value of `roots` that trusts the first KMS that answers."""
_PROVIDER_AT: Final = 1  # position of `key-provider` after `boot-mr-done`
_logger = logging.getLogger("attestkit.kms")
PinnedRoots = Iterable[KmsRoot] | SimulatedRoots | Literal["first-use"] | None
_Pins = tuple[KmsRoot, ...] | Literal["first-use"]


def check_sealed_provider(evidence: Attestation, ca_spki: bytes, document: str = "") -> None:
    """Check that the guest was launched for this app, and for this KMS or any.

    App and KMS are hashed into MR_CONFIG_ID of a TD, and PCR 8 of a NitroTPM. Zeros there mean that
    the launch sealed no configuration, and are accepted, as is every other platform.

    Args:
        evidence: Fresh evidence of this guest, whose log has `boot-mr-done`.
        ca_spki: SubjectPublicKeyInfo of the KMS's root CA in DER.
        document: The mr_config document of the host (JSON); if empty, the one in the evidence.

    Raises:
        KmsError: If the guest was launched for a different app or key provider, or this cannot be
            decided (reason `wrong_provider`).
        FormatError: If the evidence, or the configuration in it, is malformed.
        ReplayError: If PCR 14 of a NitroTPM is not the replay of the events.
    """
    if isinstance(evidence.evidence.platform, NitroTpm):
        _check_pcr(evidence, ca_spki)
        return
    quote = evidence.quote
    if quote is None or not isinstance(quote.body, TdQuoteBody):
        return
    config = json.dumps({"mr_config": document}) if document else evidence.config
    info = evidence.read_app_info(key_time=True)
    try:
        step = sealed_for_kms(quote.body.mr_config_id, info, config, ca_spki)
    except (FormatError, VerificationError) as error:
        raise SEALED_CONFIGURATION.failed(error) from error
    if step is not None and step.outcome != "passed":
        raise SEALED_CONFIGURATION.failed(step.text)


def _check_pcr(evidence: Attestation, ca_spki: bytes) -> None:
    document = evidence.nitro_document
    found = b"" if document is None else document.pcr(_CONFIG_PCR)
    if not any(found):
        return
    info = evidence.read_app_info(key_time=True)
    for provider_id in (ca_spki, b""):
        try:
            config_id = config_id_v2(info.compose_hash, info.app_id, "kms", provider_id)
        except UsageError as error:
            raise SEALED_CONFIGURATION.failed(error) from error
        if hmac.compare_digest(found, nitro_tpm_pcr8(config_id)):
            return
    raise SEALED_CONFIGURATION.failed(
        f"PCR {_CONFIG_PCR} must be that of this app and this KMS, not {found.hex()}"
    )


class KmsBoot(NamedTuple):
    """An app that was booted with keys of a KMS, the `keys` of its Attester; with boot events."""

    root: KmsRoot
    """Both root keys of the KMS that released the keys."""
    url: str
    """Base URL of that KMS."""
    is_kept: bool
    """Whether the keys are from the key file, without a request to the KMS."""
    not_proven: tuple[str, ...]
    """`kms_root` if the KMS was trusted on first use, `kms_k256_root` if no k256 key is pinned."""
    events: tuple[Event, ...]
    """The boot events, all of which are in the log."""


class _Boot(NamedTuple):
    """The guest that is booted, and the events that are to measure its app."""

    attester: Attester[Backend]
    source: BootSource
    host: BootHost
    launch: Launch
    prefix: tuple[Event, ...]  # up to boot-mr-done


def boot_with_kms(
    attester: "Attester[Backend]",
    urls: str | Iterable[str],
    *,
    roots: PinnedRoots,
    app_id: bytes | None = None,
    verifier: "Verifier | None" = None,
    limits: TimeLimits | None = None,
    now: Callable[[], float] = current_time,
    random: Callable[[int], bytes] = os.urandom,
) -> KmsBoot:
    """Boot the app with keys from a KMS, or continue a boot that was interrupted.

    Nothing is emitted after `boot-mr-done`, and no file is written, before the keys have passed all
    checks. After a boot that is complete, the keys are taken from the key file, which must be where
    only this guest can read and write. The keys are then those of the attester, which closes them.

    Args:
        attester: The guest: a simulator with `kms_boot`, or hardware with run-time registers whose
            system has not measured the app.
        urls: URLs of the KMS, tried in order.
        roots: Roots of the trusted KMSs. None is valid only if the app's `key_provider_id` pins
            the CA. "first-use" accepts any KMS, or that of the key file.
        app_id: 20 bytes. None: that of the simulator, else the first 20 bytes of the compose hash.
        verifier: Verifier of the KMS's own evidence, which is then required.
        limits: Time limits of each call; None: 5 s for a connection, 60 s in all.
        now: Returns the time in seconds since 1970.
        random: Returns a number of random bytes.

    Raises:
        UsageError: If an argument is malformed, `roots` are missing, or the simulator was opened
            without `kms_boot`.
        UnsupportedError: If the platform has no run-time registers or measures the app itself, or
            the host shares no app-compose.
        ConfigError: If a file of the host or a URL is invalid, the app's key provider is not a KMS,
            or the key file cannot be written.
        JournalError: If the log is of a different boot sequence, or does not match the register.
        KmsError: If no URL released keys that pass all checks, or the app's configuration or the
            log names a key provider that is not this KMS.
        BackendError: If the platform fails; earlier events remain.
    """
    given: _Pins | None = None
    if roots is not None:
        given = FIRST_USE if roots == FIRST_USE else require_roots(roots)
    boot = _prepare(attester, app_id)
    pins = _choose_pins(boot, given)
    client = KmsClient(  # before the first event, because it checks the arguments
        urls,
        roots=pins,
        attester=attester,
        app_id=boot.launch.app_id,
        vm_config=attester.vm_config,
        verifier=verifier,
        limits=limits,
        now=now,
        random=random,
    )
    boot.source.continue_boot(boot.prefix)
    rest = boot.source.runtime_events()[len(boot.prefix) :]
    found = _read_kept(boot, rest, pins) if len(rest) > _PROVIDER_AT else None
    if found is None:
        found = client.fetch_app_keys()
    try:
        events = _finish(boot, found)
        boot.host.use_keys(found.app_keys)
    except BaseException:
        found.app_keys.close()
        raise
    first_use = given == FIRST_USE and not boot.launch.app_compose.key_provider_id
    unproven = not_proven(found.root, None if first_use or pins == FIRST_USE else pins)
    return KmsBoot(found.root, found.url, found.is_kept, unproven, events)


def _prepare(attester: "Attester[Backend]", app_id: bytes | None) -> _Boot:
    source, host = attester.evidence_source, attester.host
    if not isinstance(source, BootSource):
        raise UnsupportedError(NO_REGISTERS, reason="no_registers")
    # By the class: `isinstance` would read properties of the host before Python 3.12.
    if host is None or not hasattr(type(host), "keep_keys"):
        message = "kms: not available with this backend, which measures the app at boot"
        raise UnsupportedError(message, reason="feature")
    assert isinstance(host, BootHost)
    if attester.simulated and not getattr(attester.backend, "kms_boot", True):
        message = "kms: the simulated guest has booted without a KMS; open it with kms_boot=True"
        raise UsageError(message, reason="conflict")
    launch = host.launch(app_id)
    if (named := _named_provider(launch)) not in {None, "kms"}:
        message = f"app-compose.json: key_provider: must be kms to boot with one, not {named}"
        raise ConfigError(message, reason="conflict")
    return _Boot(attester, source, host, launch, events_before_keys(launch))


def _named_provider(launch: Launch) -> str | None:
    """Return the key provider in app-compose; None if it names none."""
    compose = launch.app_compose
    if compose.key_provider != "none":
        return compose.key_provider
    fields = decode_strictly(compose.raw)
    return "none" if isinstance(fields, dict) and fields.get("key_provider") else None


def _choose_pins(boot: _Boot, roots: _Pins | None) -> _Pins:
    """Return the roots that may release the keys.

    If app-compose names a `key_provider_id`, only that root, which must be one of `roots` if they
    are given. Else `roots`; for "first-use" the provider of the key file, if there is one.
    """
    named = boot.launch.app_compose.key_provider_id
    if roots is None or roots == FIRST_USE:
        if named:
            return (_root_of(named, "app-compose.json: key_provider_id"),)
        if roots is None:
            message = (
                "kms_roots: missing; pass the KmsRoot of each trusted KMS (option --kms-root FILE "
                "of the server), or the text 'first-use' to trust any KMS"
            )
            raise UsageError(message, reason="missing")
        kept = _load_kept(boot.host)
        if kept is None:
            return FIRST_USE
        with kept:
            if kept.key_provider != "kms":
                return FIRST_USE
            return (_root_of(kept.key_provider_id, "key file: key_provider"),)
    if not named:
        return roots
    if not (chosen := find_root(roots, bytes.fromhex(named))):
        message = f"app-compose.json: key_provider_id: must be a pinned root CA, not {named[:200]}"
        raise KmsError(message, reason="wrong_provider")
    return chosen


def _root_of(provider_id: str, subject: str) -> KmsRoot:
    try:
        return KmsRoot(bytes.fromhex(provider_id))
    except UsageError as error:
        raise ConfigError(f"{subject}: {error}", reason="wrong_value") from error


def _load_kept(host: BootHost) -> AppKeys | None:
    try:
        return host.kept_keys()
    except ConfigError as error:
        message = f"{error}; remove the key file to have the KMS release the keys again"
        raise ConfigError(message, reason=error.reason) from error


def _read_kept(boot: _Boot, rest: tuple[Event, ...], pins: _Pins) -> FetchedKeys | None:
    """Return the keys of the key file; None unless of this app, the log's provider and a pin.

    `rest` are the log's events after `boot-mr-done`; `pins` the roots that may have released the
    keys.
    """
    keys = _load_kept(boot.host)
    if keys is None:
        return None
    image_hash = rest[0].payload
    try:
        root = _root_of_kept(keys, boot.launch.app_id, pins)
        complete = _all_events(boot, keys, image_hash)
        if root is not None and is_start(complete, (*boot.prefix, *rest)):
            provider = keys.kms_provider
            url = "" if provider is None else provider.url
            unproven = not_proven(root, None if pins == FIRST_USE else pins)
            return FetchedKeys(keys, image_hash, root, url, None, unproven, is_kept=True)
    except BaseException:
        keys.close()
        raise
    keys.close()
    _logger.warning(
        "key file: not of this app, the key provider in the log and a pinned KMS; fetching the keys"
    )
    return None


def _root_of_kept(keys: AppKeys, app_id: bytes, pins: _Pins) -> KmsRoot | None:
    """Return the root keys of the KMS that released `keys` for an app id; None if not pinned."""
    sizes = len(keys.env_crypt_key), len(keys.disk_crypt_key), len(keys.k256_signature)
    if keys.key_provider != "kms" or sizes != (32, 32, 65):
        return None
    try:
        found = KmsRoot(
            bytes.fromhex(keys.key_provider_id),
            recover_kms_root(keys.root_public_key, app_id, keys.k256_signature),
        )
    except (SignatureError, UsageError):
        return None
    if pins == FIRST_USE:
        return found
    assert found.k256_public_key is not None
    allowed = [root.may_be_k256(found.k256_public_key) for root in find_root(pins, found.ca_spki)]
    return found if any(allowed) else None


def _all_events(boot: _Boot, keys: AppKeys, image_hash: bytes) -> tuple[Event, ...]:
    own = boot.launch.os_image_hash
    launch = boot.launch._replace(app_keys=keys, os_image_hash=own or image_hash)
    return (*boot.prefix, *events_after_keys(launch))


def _finish(boot: _Boot, found: FetchedKeys) -> tuple[Event, ...]:
    """Check that the key provider is the measured one, write the key file, and emit the rest.

    Returns:
        All boot events.
    """
    spki = found.root.ca_spki
    named = bytes.fromhex(boot.launch.app_compose.key_provider_id)
    if named and not hmac.compare_digest(named, spki):
        message = (
            f"app-compose.json: key_provider_id: is {named.hex()[:200]}, but the root CA key of "
            f"the KMS is {spki.hex()}; use the KMS that the app names, or correct key_provider_id"
        )
        raise KmsError(message, reason="wrong_provider")
    host = boot.host
    document: str = getattr(host, "mr_config", "")
    check_sealed_provider(boot.attester.attest(report_data=bytes(64)), spki, document)
    events = _all_events(boot, found.app_keys, found.os_image_hash)
    _check_log(boot, events)
    if not found.is_kept:
        host.keep_keys(found.app_keys)
    boot.source.continue_boot(events)
    return events


def _check_log(boot: _Boot, events: tuple[Event, ...]) -> None:
    """Check that the log, after `boot-mr-done` if it has more, is that of a boot with these keys.

    `events` are the boot events with these keys.
    """
    done = boot.source.runtime_events()
    for logged, expected in zip(done, events, strict=False):
        if logged == expected:
            continue
        if expected.name == logged.name in {"key-provider", "os-image-hash"}:
            provider = logged.name == "key-provider"
            message = (
                f"{logged.name}: must be {expected.payload.hex()} with the keys of this KMS, not "
                f"{logged.payload[:300].hex()} as in this boot's log"
            )
            raise KmsError(message, reason="wrong_provider" if provider else "wrong_image")
        boot.source.continue_boot(events)  # raises JournalError
