"""Decisions of dstack's file-based authorization server (dstack, kms/auth-simple).

The file is read at each request, so a change takes effect at once. As in dstack, a missing or
malformed file allows nothing. Unlike in dstack, an unknown key is an error: a misspelt
`allowedTcbStatuses` would silently be the default.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from attestkit._formats.typed_json import decode_typed
from attestkit._sanitize import key as shorten
from attestkit._sanitize import shown
from attestkit._system.untrusted_files import read_regular
from attestkit.errors import ConfigError, UsageError
from attestkit.kms.release.authorization import (
    NOT_REGISTERED,
    AuthorityInfo,
    BootInfo,
    Decision,
    KmsAuthorization,
    Role,
)
from attestkit.verifier import AppraisalPolicy, TcbStatus

MAX_FILE_SIZE: Final = 1 << 20
"""Largest size of a file in bytes (1 MiB)."""
MAX_APPS: Final = 4096
"""Largest number of apps in a file."""

_NO_CONTRACT: Final = "0x" + "0" * 40
_MAX_CHAIN_ID: Final = (1 << 63) - 1  # msgspec has no larger limits
_logger = logging.getLogger("attestkit.kms")


class _Devices(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """Devices on which an app, or a KMS that requests the roots, may run; ids in hex."""

    devices: tuple[str, ...] = ()
    allow_any_device: bool = False

    def allows_any(self) -> bool:
        """Return whether any device is allowed: also if none is listed, as in dstack."""
        return self.allow_any_device or not self.devices

    def allows(self, device_id: bytes) -> bool:
        """Return whether the device with this id (SHA-256 of its identity) is allowed."""
        return self.allows_any() or _is_listed(device_id, self.devices)


class AppRules(_Devices, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Rules about an app: compose hashes in hex, and devices."""

    compose_hashes: tuple[str, ...] = ()


class KmsRules(_Devices, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Rules about a KMS that requests this one's roots: measurements in hex, and devices."""

    mr_aggregated: tuple[str, ...] = ()


class AuthSimpleConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):
    """Content of a configuration file of auth-simple; hex has any case, with or without 0x."""

    gateway_app_id: str = ""
    kms_contract_addr: str = _NO_CONTRACT
    app_implementation: str = _NO_CONTRACT
    chain_id: Annotated[int, msgspec.Meta(ge=0, le=_MAX_CHAIN_ID)] = 0
    os_images: tuple[str, ...] = ()
    allowed_tcb_statuses: tuple[str, ...] = ("UpToDate",)
    allowed_advisory_ids: tuple[str, ...] = ()
    kms: KmsRules = KmsRules()
    apps: dict[str, AppRules] = {}

    @classmethod
    def from_json(cls, data: bytes | str) -> "AuthSimpleConfig":
        """Decode `data`, the JSON of a configuration file.

        Raises:
            ConfigError: If it is malformed, over 1 MiB or has over 4,096 apps, has an unknown key,
                or names an app twice. The message names the key.
        """
        if len(data) > MAX_FILE_SIZE:
            raise ConfigError(f"auth-simple: over {MAX_FILE_SIZE} bytes", reason="too_large")
        found = decode_typed(data, cls)
        if len(found.apps) > MAX_APPS:
            message = f"apps: must be at most {MAX_APPS}, not {len(found.apps)}"
            raise ConfigError(message, reason="too_many")
        if len(set(map(_normalize, found.apps))) != len(found.apps):
            raise ConfigError("apps: must name an app once, with or without 0x", reason="duplicate")
        return found

    def find_app(self, app_id: bytes) -> AppRules | None:
        """Return the rules about an app, by its id of 20 bytes; None if it is not listed."""
        wanted = app_id.hex()
        return next((one for name, one in self.apps.items() if _normalize(name) == wanted), None)

    def decide(self, role: Role, boot: BootInfo) -> Decision:
        """Decide whether a guest, whose evidence was verified, gets keys.

        The first rule that is not met gives the reason of a refusal, in the order of TCB status,
        advisories, OS image, measurements, device.

        Args:
            role: `app` for the keys of an app, by the rules in `apps`; `kms` for the roots, by
                those in `kms`.
            boot: Verified values of the guest.
        """
        reason = self._refuse_platform(boot)
        if not reason:
            reason = self._refuse_kms(boot) if role == "kms" else self._refuse_app(boot)
        return Decision(not reason, reason, self.gateway_app_id)

    def _refuse_platform(self, boot: BootInfo) -> str:
        if boot.tcb_status not in self.allowed_tcb_statuses:
            return "TCB status is not allowed"
        if not set(boot.advisory_ids) <= set(self.allowed_advisory_ids):
            return "advisory ID is not allowed"
        if not _is_listed(boot.os_image_hash, self.os_images):
            return "OS image is not allowed"
        return ""

    def _refuse_kms(self, boot: BootInfo) -> str:
        if not _is_listed(boot.mr_aggregated, self.kms.mr_aggregated):
            return "aggregated MR not allowed"
        if not self.kms.allows(boot.device_id):
            return "KMS is not allowed to boot on this device"
        return ""

    def _refuse_app(self, boot: BootInfo) -> str:
        if (app := self.find_app(boot.app_id)) is None:
            return NOT_REGISTERED
        if not _is_listed(boot.compose_hash, app.compose_hashes):
            return "compose hash not allowed"
        if not app.allows(boot.device_id):
            return "app is not allowed to boot on this device"
        return ""

    def open_to_any_device(self) -> tuple[str, ...]:
        """Return the JSON keys (`apps.ID`, `kms`) that allow any device without stating so.

        Their `devices` are empty, and `allowAnyDevice` is not set. `kms` is left out if it lists no
        measurements.
        """
        entries: Mapping[str, _Devices] = {
            "kms": self.kms,
            **{f"apps.{shorten(name)}": app for name, app in self.apps.items()},
        }
        has_kms = bool(self.kms.mr_aggregated)
        return tuple(
            name
            for name, entry in entries.items()
            if not entry.devices and not entry.allow_any_device and (name != "kms" or has_kms)
        )

    def app_policy(self, app_id: bytes) -> AppraisalPolicy:
        """Return the rules about an app, by its id of 20 bytes, as an appraisal policy.

        Raises:
            ConfigError: If the app is not listed, a list of accepted values is empty, or a value is
                not valid.
        """
        app, where = self.find_app(app_id), f"apps.{app_id.hex()}"
        if app is None:
            text = f"apps: {app_id.hex()} is not listed; add it"
            raise ConfigError(text, reason="missing")
        return self._policy(
            {
                "app_id": (app_id,),
                "compose_hash": _values(f"{where}.composeHashes", app.compose_hashes),
            },
            app,
            where,
        )

    def kms_policy(self) -> AppraisalPolicy:
        """Return the rules about a KMS that requests the roots as an appraisal policy.

        Raises:
            ConfigError: If a list of accepted values is empty, or a value is not valid.
        """
        aggregated = _values("kms.mrAggregated", self.kms.mr_aggregated)
        return self._policy({"mr_aggregated": aggregated}, self.kms, "kms")

    def _policy(self, rules: dict[str, object], devices: _Devices, where: str) -> AppraisalPolicy:
        """Return a policy with `rules` and the settings; `where` is the JSON key of `devices`."""
        statuses = []
        for name in self.allowed_tcb_statuses:
            if name not in set(TcbStatus):
                text = f"allowedTcbStatuses: must be values of TcbStatus, not {shown(name)}"
                raise ConfigError(text, reason="wrong_value")
            statuses.append(TcbStatus(name))
        listed = None if devices.allows_any() else _values(f"{where}.devices", devices.devices)
        try:
            return AppraisalPolicy(
                accepted_statuses=statuses,
                accepted_advisories=self.allowed_advisory_ids,
                os_image_hash=_values("osImages", self.os_images),
                device_id=listed,
            ).replace(**rules)
        except UsageError as error:
            raise ConfigError(f"auth-simple: {error}", reason="wrong_value") from error


class AuthSimpleFile(KmsAuthorization):
    """Authorization by a configuration file of auth-simple, which is read at each request.

    A missing or malformed file allows nothing.

    Args:
        path: Path of the file, which need not exist yet.

    Raises:
        ConfigError: If the file has an unknown key, or names an app twice.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._warned: object = None  # the content of the last warning
        self._read()

    @property
    def releases_roots(self) -> bool:
        """Whether the file lists measurements of a KMS that may request the roots; see `decide`."""
        return bool(self._read().kms.mr_aggregated)

    def decide(self, role: Role, boot_info: BootInfo) -> Decision:
        """Read the file again, and decide by it whether a guest gets keys.

        Args:
            role: What the guest requests: `app` for the keys of its app, `kms` for the roots of
                this KMS.
            boot_info: Values of the guest, whose evidence was verified.

        Returns:
            The decision; a refusal if the file is missing or otherwise malformed.

        Raises:
            ConfigError: If the file has an unknown key, or names an app twice.
        """
        return self._read().decide(role, boot_info)

    def describe(self) -> AuthorityInfo:
        """Read the file again, and return its values for GetMeta; raises as `decide`."""
        found = self._read()
        return AuthorityInfo(
            gateway_app_id=found.gateway_app_id,
            kms_contract_address=found.kms_contract_addr,
            chain_id=found.chain_id,
            app_auth_implementation=found.app_implementation,
        )

    def _read(self) -> AuthSimpleConfig:
        try:
            data = read_regular(self._path, MAX_FILE_SIZE + 1, follow=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            problem = getattr(error, "strerror", None) or str(error)
            self._warn(problem, f"{problem}; nothing is allowed")
            return AuthSimpleConfig()
        try:
            found = AuthSimpleConfig.from_json(data)
        except ConfigError as error:
            if error.reason in {"unknown_key", "duplicate"}:
                raise ConfigError(f"{self._path}: {error}", reason=error.reason) from error
            self._warn(data, f"{error}; nothing is allowed")
            return AuthSimpleConfig()
        if names := found.open_to_any_device():
            listed = ", ".join(names[:8])
            self._warn(data, f"{listed}: an empty list of devices allows any; list the devices")
        return found

    def _warn(self, content: object, problem: str) -> None:
        """Log a warning with text `problem`, once for each content of the file.

        `content` is any value that identifies the file's content.
        """
        if content != self._warned:
            self._warned = content
            _logger.warning("auth-simple: %s: %s", self._path, problem)


def _normalize(text: str) -> str:
    return text.lower().removeprefix("0x")


def _is_listed(value: bytes, listed: Iterable[str]) -> bool:
    """Return whether a value that is not empty is among `listed`, texts in hex."""
    wanted = value.hex()
    return bool(wanted) and any(_normalize(text) == wanted for text in listed)


def _values(name: str, texts: Iterable[str]) -> tuple[bytes, ...]:
    """Return the bytes of hex texts of the key `name`; ConfigError if none, or one is not hex."""
    found = []
    for text in texts:
        try:
            found.append(bytes.fromhex(_normalize(text)))
        except ValueError as error:
            message = f"{name}: each value must be hex, not {shown(text)}"
            raise ConfigError(message, reason="encoding") from error
    if not found:
        raise ConfigError(f"{name}: must have a value, or nothing is allowed", reason="missing")
    return tuple(found)
