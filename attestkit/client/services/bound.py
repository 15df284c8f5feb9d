"""A service of the caller's own, with evidence under a path and report data by a formula: `bound`.

```python
mine = bound(
    path="/attest?nonce={nonce}",
    evidence=lambda body: bytes.fromhex(json.loads(body)["quote"]),
    report_data=lambda seen, nonce, body: ReportData.bind("my-app", seen.spki_sha256 + nonce),
)
attestkit.connect(url, policy=policy, service=mine)
```
"""

from collections.abc import Callable
from typing import Final

from attestkit._argument_checks import require_size
from attestkit.attestation import Attestation
from attestkit.client.services.service import Binding, Claims, Machine, Question, Where
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import AttestKitError, FormatError, ServiceError, UsageError

ReadEvidence = Callable[[bytes], bytes | Attestation]
"""Function that takes the evidence out of the body of an answer."""

ReadReportData = Callable[[ObservedPeer, bytes, bytes], bytes]
"""Function of the observed peer, the nonce and the body: the 64 bytes of report data."""

_NONCE: Final = "{nonce}"
_BINDING: Final = (
    "that report data depends on key and nonce: this rests on the caller's function `report_data`"
)
_REPORT_DATA: Final = 64  # bytes


def bound(
    *, path: str, evidence: ReadEvidence, report_data: ReadReportData, name: str = "bound"
) -> "BoundService":
    """Return a service whose evidence is over report data that a function computes.

    Args:
        path: Path and query of the request; `{nonce}` stands for the nonce, 64 hex digits. Without
            it the evidence shows possession of the key only.
        evidence: Function that returns the evidence in the body of the answer, an Attestation or
            its bytes. If it raises an error, the server is refused.
        report_data: Function of the observed TLS peer, the nonce (32 bytes) and the body that
            returns the 64 bytes of report data. It has to use the observed key, never one that the
            body names, and the nonce, if there is one.
        name: Name of the service.

    Raises:
        UsageError: If `path` does not begin with a slash.
    """
    if not path.startswith("/"):
        raise UsageError(f"path: must begin with '/', not {path[:1]!r}", reason="wrong_value")
    return BoundService(name, path, evidence, report_data)


class BoundService:
    """A service of the caller's own; see `bound`."""

    where: Where = "wire"

    def __init__(
        self, name: str, path: str, evidence: ReadEvidence, report_data: ReadReportData
    ) -> None:
        self.name = name
        self._path, self._evidence, self._report_data = path, evidence, report_data

    def recognizes(self, host: str) -> bool:
        """Return False, whatever `host` is: only a caller that passes the service uses it."""
        return False

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return the request for `path` of `bound`, with the nonce in hex in it.

        Args:
            nonce: Nonce of the client, 32 bytes.
            model: Not used.
        """
        return (Question(self._path.replace(_NONCE, nonce.hex())),)

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims that the caller's functions find; the evidence is verified later.

        Args:
            answers: Body of the only answer.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection; None is an error.
            model: Not used.

        Raises:
            FormatError: If a function of the caller fails; an AttestKitError of it is raised as it
                is.
            ServiceError: If `seen` is None (reason `no_channel`).
            UsageError: If the report data are not 64 bytes.
        """
        if seen is None:
            message = (
                f"{self.name}: no TLS certificate of the server was observed, so its key cannot be "
                'compared with the evidence; leave `where` of the service at "wire"'
            )
            raise ServiceError(message, reason="no_channel")
        body = answers[0]
        try:
            evidence = self._evidence(body)
            expected = self._report_data(seen, nonce, body)
        except AttestKitError:
            raise
        except Exception as error:  # of the caller's functions, about a body that is untrusted
            message = (
                f"{self.name}: the function evidence or report_data of bound() raised "
                f"{type(error).__name__}"
            )
            raise FormatError(message, reason="syntax") from error
        require_size("report_data", expected, _REPORT_DATA)
        fresh = _NONCE in self._path
        return Claims(
            machines=(Machine("server", evidence, expected),),
            bindings=(Binding("tls-spki", seen.spki_sha256, "server"),),
            freshness="nonce" if fresh else "key possession",
            not_proven=(_BINDING,),
        )
