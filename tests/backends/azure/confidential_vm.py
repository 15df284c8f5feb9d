"""A confidential VM of Azure: swtpm with the content that a paravisor keeps in it, and IMDS."""

import json
from typing import TYPE_CHECKING, Any

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import encode_pem
from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation.azure import HclReport
from attestkit.backends.azure import AzureBackend, ImdsClient
from attestkit.backends.azure.backend import AK_CERTIFICATE, AK_HANDLE, HCL_REPORT, USER_DATA
from attestkit.backends.azure.imds import read_base64
from attestkit.backends.simulator.pki.quoting_enclave import TdBody
from attestkit.backends.tpm.client import TpmClient
from attestkit.td_report import TdReport
from attestkit.tpm.handles import ENDORSEMENT
from tests.attestation.hcl import jwk, runtime_json
from tests.backends.azure.imds_server import ImdsServer, SentRequest, json_response
from tests.backends.tpm.templates import RSA_AK
from tests.collateral.http_server import CreateServer, create_response
from tests.verifier.platforms import amd, azure, intel

if TYPE_CHECKING:
    from collections.abc import Callable

INDEX_SIZE = 2048
"""Bytes of the HCL report's index: the most that libtpms permits."""


class ConfidentialVm:
    """A TPM whose HCL report is made anew while the guest waits, as the paravisor does."""

    def __init__(self, tpm: TpmClient, create_server: CreateServer, kind: str = "snp") -> None:
        self.tpm = tpm
        self.kind = kind
        self.waits: list[float] = []
        self.with_user_data = True  # False: an early paravisor
        self.while_waiting: Callable[[], object] = self.refresh
        with tpm.primary_key(ENDORSEMENT, RSA_AK) as key:
            tpm.evict_control(key.handle, AK_HANDLE)
            self.modulus = key.public.modulus
        tpm.nv_define(HCL_REPORT, INDEX_SIZE)
        self.refresh()
        # Made before a request: creating RSA keys may take seconds, and a request has 5.
        self._certificates = json_response(
            vcekCert=encode_pem("CERTIFICATE", amd.vcek()),
            tcbm="D517000000000004",
            certificateChain="".join(
                encode_pem("CERTIFICATE", der) for der in (amd.ask(), amd.ark())
            ),
            cacheControl="86400",
        )
        self.imds = ImdsServer(create_server, self._answer)
        self.answers: dict[str, bytes] = {}  # by the path of the request

    def sleep(self, seconds: float) -> None:
        """Let the paravisor work, instead of waiting."""
        self.waits.append(seconds)
        self.while_waiting()

    def refresh(self) -> None:
        """Write a report over the user data that the guest has written."""
        members: dict[str, Any] = {}
        if self.with_user_data:
            found = self.tpm.read_nv_index(USER_DATA) or b""
            members["user_data"] = found.ljust(64, b"\0").hex().upper()
        runtime = runtime_json(jwk(modulus=self.modulus), **({"user_data": None} | members))
        report_data = sha256(runtime) + bytes(32)
        if self.kind == "snp":
            made = HclReport.create("snp", amd.report({0x50: report_data}), runtime)
        else:
            body = TdBody(report_data=report_data, td_attributes=bytes(8))
            made = HclReport.create("tdx", azure.td_report(body), runtime)
        self.write_report(made.encode())

    def write_report(self, report: bytes) -> None:
        """Write the index of the HCL report."""
        self.tpm.nv_write(HCL_REPORT, report.ljust(INDEX_SIZE, b"\0"))

    def write_certificate(self, certificate: bytes) -> None:
        """Write the index of the key's certificate, which is larger than the certificate."""
        self.tpm.nv_define(AK_CERTIFICATE, INDEX_SIZE)
        self.tpm.nv_write(AK_CERTIFICATE, certificate.ljust(INDEX_SIZE, b"\0"))

    def _answer(self, request: SentRequest) -> bytes:
        path = request.line.split()[1]
        if (answer := self.answers.get(path)) is not None:
            return answer
        if path == "/acc/tdquote":
            report = TdReport.parse(read_base64(json.loads(request.body)["report"], "report"))
            return json_response(quote=to_base64url(intel.ENCLAVE.quote(report.quote_body())))
        if path == "/metadata/THIM/amd/certification":
            return self._certificates
        return create_response(b"").replace(b"200 OK", b"404 Not Found")

    def backend(self, **options: Any) -> AzureBackend:
        """Return a backend of this VM."""
        imds = ImdsClient(self.imds.address, sleep=self.sleep)
        defaults: dict[str, Any] = {
            "client": self.tpm,
            "imds": imds,
            "sleep": self.sleep,
            "logs": False,
        }
        return AzureBackend(**(defaults | options))
