"""Simulated TDX platform and its TD: identity, launch values, registers, TD reports and boot id."""

import hmac
import json
import struct
from collections.abc import Callable
from hashlib import sha384
from typing import Final
from uuid import UUID

from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit.backends.simulator.boot_log import boot_records, replay_records
from attestkit.backends.simulator.images.os_image import simulated_image
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import FormatError, UsageError
from attestkit.td_report import TdReport

_LIVE: Final = {"rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data"}  # not fixed at launch


def issue_platform(seed: bytes, scenario: Scenario) -> tuple[SimulatedPki, QuotingEnclave]:
    """Return the PKI of a seed (32 bytes) and the quoting enclave of the scenario's platform.

    Raises:
        UsageError: If the scenario's platform id is invalid, or it alters an unknown field.
    """
    pki = SimulatedPki(seed, config=scenario.pki)
    platform_pki = pki if scenario.platform_pki is None else pki.other(scenario.platform_pki)
    enclave = QuotingEnclave(platform_pki, scenario.platform_id, config=scenario.quote)
    return pki, enclave


def find_intel_root(seed: bytes, scenario: Scenario) -> bytes:
    """Return the trust anchor (DER) of quotes of the platform that `seed` and `scenario` make."""
    anchor = scenario.trust_anchor
    if isinstance(anchor, bytes):
        return anchor
    pki = SimulatedPki(seed, config=scenario.pki)
    return (pki if anchor is None else pki.other(anchor)).root_der


def launch_body(scenario: Scenario, mr_config_id: bytes, *, mrtd: bytes | None = None) -> TdBody:
    """Return the fields of a TD body that are fixed at launch.

    Args:
        scenario: Its `body` replaces fields, and its `image` selects the simulated OS image.
        mr_config_id: 48 bytes.
        mrtd: 48 bytes. None: that of the simulated OS image.

    Raises:
        UsageError: If the scenario sets an unknown field, one that is not fixed at launch, or a
            value of the wrong size.
    """
    measured = simulated_image(scenario.image).mrtd if mrtd is None else mrtd
    own = {"mrtd": measured, "mr_config_id": mr_config_id}
    changes = dict(scenario.body)
    if invalid := changes.keys() - TdBody._fields | changes.keys() & _LIVE:
        text = f"scenario: body: cannot set {min(invalid)!r}; use fields of TdBody fixed at launch"
        raise UsageError(text, reason="unknown_name")
    body = TdBody(**{**own, **changes})
    body.td15()  # checks the sizes
    return body


# The default app of simulated TDs, and the instance id.

_SALT: Final = b"attestkit/simulator/v1"

# Logs and system information are public, so that every page of the server has content.
_OWN: Final = {
    "manifest_version": 2,
    "name": "attestkit-simulator",
    "runner": "docker-compose",
    "docker_compose_file": "services: {}\n",
    "public_logs": True,
    "public_sysinfo": True,
    "public_tcbinfo": True,
    "key_provider": "none",
    "no_instance_id": False,
    "secure_time": False,
    "event_log_version": 1,
}
OWN_APP: Final = json.dumps(_OWN, separators=(",", ":")).encode()
OWN_APP_OF_KMS: Final = json.dumps({**_OWN, "key_provider": "kms"}, separators=(",", ":")).encode()


def instance_id(seed: bytes, app_id: bytes, compose: AppCompose, platform_id: str) -> bytes:
    """Return the instance id, 20 bytes; empty if the app-compose disables it.

    As in a dstack guest: the first 20 bytes of SHA-256 over a secret and the app id. The secret is
    derived from seed and platform, not stored on the disk: each platform runs one instance.

    Args:
        seed: Seed of the machine, 32 bytes.
        app_id: 20 bytes.
        compose: The app-compose.
        platform_id: `Scenario.platform_id`, such as "0".
    """
    if compose.no_instance_id:
        return b""
    label = b"instance-id" if platform_id == "0" else f"instance-id/{platform_id}".encode()
    return sha256(hkdf_sha256(seed, label, 20, _SALT) + app_id)[:20]


_VALID_10, _VALID_15 = 0x1FF, 0x301FF  # VALID of TEE_TCB_INFO, by TDX version
_MAC_AT: Final = 224
_HEALTHY: Final = Scenario()


def _mac(key: bytes, report: bytes) -> bytes:
    return hmac.digest(key, report[:_MAC_AT], "sha256")


class EmulatedTd:
    """Registers and launch values of a freshly booted TD, whose RTMR3 is zero.

    Args:
        pki: The PKI of its platform.
        extended: Whether TD reports have the fields of TDX 1.5.
        mr_config_id: 48 bytes, set at launch.
        random: Returns a number of random bytes.
        scenario: Its `body` replaces launch values, and its `image` selects the OS image.
        paravisor: MRTD (48 bytes) of a paravisor, which extends no register; None: the TD boots the
            simulated OS image.

    Raises:
        UsageError: As for `launch_body`.
    """

    def __init__(
        self,
        pki: SimulatedPki,
        *,
        extended: bool,
        mr_config_id: bytes,
        random: Callable[[int], bytes],
        scenario: Scenario = _HEALTHY,
        paravisor: bytes | None = None,
    ) -> None:
        self._cpu_svn = pki.config.cpusvn
        self._mac_key = _mac_key(pki)
        self._random = random
        self.launch: TdBody = launch_body(scenario, mr_config_id, mrtd=paravisor)
        self._head = bytes([0x81, 0, int(extended), 0]) + bytes(12) + self._cpu_svn
        launch = self.launch
        self._tcb_info = b"".join(
            (
                struct.pack("<Q", _VALID_15 if extended else _VALID_10),
                *launch[:4],  # tee_tcb_svn to seam_attributes
                launch.tee_tcb_svn2 if extended else bytes(16),
                bytes(95),
            )
        )
        self._head += sha384(self._tcb_info).digest()
        self._td_info_head = b"".join(launch[4:10])  # td_attributes to mr_owner_config
        self._td_info_tail = launch.mr_service_td + bytes(64)
        self._boot_values = (bytes(48),) * 4
        if paravisor is None:
            image = simulated_image(scenario.image)
            self._boot_values = (*replay_records(boot_records(image)), bytes(48))
        self.rtmrs: list[bytes] = []
        self.boot_id: str = ""
        self.reboot()

    def reboot(self) -> None:
        """Reboot: reset the registers to their values after boot, and change the boot id."""
        self.rtmrs = list(self._boot_values)
        self.kexec()

    def kexec(self) -> None:
        """Start another kernel: change the boot id, but not the registers."""
        self.boot_id = str(UUID(bytes=self._random(16), version=4))

    def extend(self, register: int, digest: bytes) -> None:
        """Extend RTMR `register`, 0 to 3, by a digest of 48 bytes; neither is checked."""
        self.rtmrs[register] = sha384(self.rtmrs[register] + digest).digest()

    def report(self, report_data: bytes) -> bytes:
        """Return a TDREPORT, 1024 bytes with a MAC, over `report_data`, 64 bytes (not checked)."""
        info = b"".join((self._td_info_head, *self.rtmrs, self._td_info_tail))
        head = b"".join((self._head, sha384(info).digest(), report_data, bytes(32)))
        mac = _mac(self._mac_key, head)
        return b"".join((head, mac, self._tcb_info, bytes(17), info))


class ReportQuoter:
    """The quoting enclave of a platform, which converts TDREPORTs of the platform to quotes.

    Args:
        pki: The PKI of the platform.
        version: 4 (quotes with a TD 1.0 body) or 5 (TD 1.5).
        check_mac: Whether to reject reports whose MAC is not of this platform.
        enclave: Signer of the quotes. None: that of the platform.
        td10: Whether quotes of version 5 also have a TD 1.0 body.

    Raises:
        UsageError: If the version is not 4 or 5.
    """

    def __init__(
        self,
        pki: SimulatedPki,
        *,
        version: int = 4,
        check_mac: bool = True,
        enclave: QuotingEnclave | None = None,
        td10: bool = False,
    ) -> None:
        if version not in (4, 5):
            text = f"quote_version: must be 4 or 5, not {version!r}"
            raise UsageError(text, reason="wrong_value")
        self._enclave = QuotingEnclave(pki) if enclave is None else enclave
        self._version = version
        self._extended = version == 5 and not td10
        self._mac_key = _mac_key(pki) if check_mac else None

    def quote(self, report: bytes) -> bytes:
        """Return the quote of a TDREPORT, 1024 bytes.

        Raises:
            FormatError: If the report is malformed or, with `check_mac`, from another platform.
        """
        if self._mac_key is not None:
            given = report[_MAC_AT : _MAC_AT + 32]
            if len(report) != 1024 or not hmac.compare_digest(_mac(self._mac_key, report), given):
                text = "TDREPORT: must have 1024 bytes and a MAC of this platform; request another"
                raise FormatError(text, reason="inconsistent", offset=_MAC_AT)
        body = TdReport.parse(report).quote_body(extended=self._extended)
        return self._enclave.quote(body, version=self._version)


def _mac_key(pki: SimulatedPki) -> bytes:
    return pki.derive("platform/0/report-mac", 32)
