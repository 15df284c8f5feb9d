"""Loading of a key and its certificates into an ssl context, without a file on disk."""

import contextlib
import os
import ssl
from collections.abc import Iterator

from attestkit._argument_checks import wrong_type
from attestkit.errors import UnsupportedError, UsageError
from attestkit.ra_tls.issued import Issued


def load_issued(context: ssl.SSLContext, issued: object) -> None:
    """Load key and certificates into a context.

    Raises:
        UsageError: If `issued` is not an `Issued`, or its key does not belong to its certificate.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    if not isinstance(issued, Issued):  # the text omits the value, which may be a key
        raise wrong_type("issued", "a ra_tls.Issued", issued)
    message = "issued: key or certificates are not PEM, or do not belong together"
    invalid = UsageError(message, reason="invalid_key")
    try:
        content = "".join((issued.key_pem, *issued.certificate_chain)).encode()
    except (TypeError, UnicodeError):
        raise invalid from None  # the cause may contain the key
    with _file_in_memory(content) as path:
        try:
            context.load_cert_chain(path, password="")
        except OSError as error:
            raise invalid from error


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of an anonymous file in memory, because ssl loads keys from files only.

    The key is not written to disk, and the file is removed in any case.
    """
    try:
        descriptor = os.memfd_create("attestkit-tls-key", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        message = "TLS key: memfd_create, which loading it requires, is not available"
        raise UnsupportedError(message, reason="feature") from error
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(content)
        path = f"/proc/self/fd/{descriptor}"
        if not os.path.exists(path):  # noqa: PTH110 - three times as fast as Path
            message = "TLS key: /proc/self/fd, which loading it requires, is not available"
            raise UnsupportedError(message, reason="feature")
        yield path
