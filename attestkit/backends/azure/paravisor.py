"""Content of the TPM of Azure's paravisor: HCL report, user data, keys (vtpm.md, section 6.1)."""

import hmac
import time
from collections.abc import Callable
from typing import Final

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit.attestation.azure import HclReport, is_hcl_report
from attestkit.backends.linux.device_errors import failed, unavailable
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.response_codes import TpmError
from attestkit.errors import FormatError
from attestkit.tpm.nv_attributes import OWNER_READ, OWNER_WRITE

HCL_REPORT: Final = 0x01400001
"""NV index of the HCL report."""

USER_DATA: Final = 0x01400002
"""NV index of the user data, which the guest defines and writes."""

AK_CERTIFICATE: Final = 0x01C101D0
"""NV index of the certificate of the attestation key, in DER, zero-padded."""

AK_HANDLE: Final = 0x81000003
"""Persistent handle of the attestation key."""

USER_DATA_SIZE: Final = 64
REFRESH_SECONDS: Final = 3.0
"""Time after which the paravisor makes a new report of the user data; it does so every 2 s."""

_NOT_AZURE: Final = "this is not a confidential VM of Azure"
_CREATE: Final = "create the VM with the security type ConfidentialVM"
_RESTART: Final = "restart the VM, whose paravisor makes it"
_ATTEMPTS: Final = 4  # reads of the report after the user data were written


class Paravisor:
    """The paravisor of this VM, through its TPM.

    Args:
        client: The TPM.
        sleep: Function that waits for seconds.
    """

    def __init__(self, client: TpmClient, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    @property
    def path(self) -> str:
        """The TPM's name in errors."""
        return self._client.path

    def read_report(self) -> tuple[bytes, HclReport]:
        """Return the HCL report, as in the NV index and parsed.

        Raises:
            BackendUnavailableError: If there is none (`missing`), or it is of a VM without SEV-SNP
                and TDX, or malformed (`wrong_platform`).
            BackendError: If the TPM fails.
        """
        raw = self._client.read_nv_index(HCL_REPORT)
        if raw is None or not is_hcl_report(raw):
            text = f"no HCL report in NV index {HCL_REPORT:#010x}; {_NOT_AZURE}: {_CREATE}"
            raise unavailable(self.path, text, "missing")
        try:
            return raw, HclReport.parse(raw)
        except FormatError as error:
            text = f"NV index {HCL_REPORT:#010x}: {error}; {_CREATE}"
            raise unavailable(self.path, text, "wrong_platform") from error

    def request_report(self, user_data: bytes) -> tuple[bytes, HclReport]:
        """Write user data, and return a report with them, as `read_report`.

        It takes 3 to 12 seconds. The report of a paravisor without support for user data has none.

        Args:
            user_data: 64 bytes.

        Raises:
            BackendUnavailableError: As `read_report`.
            BackendError: If the TPM fails, or the report has other user data each time, because
                another process wrote them or the paravisor does not refresh it
                (`wrong_report_data`).
        """
        self._write_user_data(user_data)
        for _ in range(_ATTEMPTS):
            self._sleep(REFRESH_SECONDS)
            raw, report = self.read_report()
            found = report.content.user_data
            if found is None or hmac.compare_digest(found, user_data):
                return raw, report
        text = (
            f"the HCL report has other user data than were written to NV index {USER_DATA:#010x}; "
            "another process may use it: retry, or open the backend with user_data=False"
        )
        raise failed(self.path, text, "wrong_report_data")

    def _write_user_data(self, user_data: bytes) -> None:
        """Write the user data, after defining their index if it is absent or of another size."""
        with self._client.lock:
            found = self._client.find_nv(USER_DATA)
            if found is not None and found.size != USER_DATA_SIZE:
                self._client.nv_undefine(USER_DATA)
                found = None
            if found is None:
                self._client.nv_define(USER_DATA, USER_DATA_SIZE, OWNER_WRITE | OWNER_READ)
            self._client.nv_write(USER_DATA, user_data)

    def check_key(self, report: HclReport) -> None:
        """Check that the attestation key in the TPM is that of the report.

        Raises:
            BackendUnavailableError: If the TPM has no attestation key (`missing`).
            BackendError: If it has another one (`platform_changed`), or the TPM fails.
        """
        key = self._client.find_key(AK_HANDLE)
        if key is None:
            text = f"no attestation key at handle {AK_HANDLE:#010x}; {_RESTART}"
            raise unavailable(self.path, text, "missing")
        if key.public.spki != report.content.attestation_key.spki:
            text = f"the key at handle {AK_HANDLE:#010x} is not that of the HCL report; {_RESTART}"
            raise failed(self.path, text, "platform_changed")

    def read_certificates(self) -> tuple[bytes, ...]:
        """Return the certificate of the attestation key in DER; empty without one.

        Raises:
            BackendError: If the TPM fails.
        """
        try:
            found = self._client.read_nv_index(AK_CERTIFICATE)
        except TpmError as error:
            if error.is_denied:
                return ()
            raise
        if found is None:
            return ()
        try:
            return (DerReader(found).whole(SEQUENCE),)  # the rest of the index is padding
        except FormatError:
            return ()  # optional: a malformed certificate is treated as absent
