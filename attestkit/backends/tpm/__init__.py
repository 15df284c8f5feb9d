"""TPM 2.0 of this machine: transports, commands, sessions, quotes, and the backend `tpm`.

The other modules are shared by the backends of clouds, whose guests have a virtual TPM.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.backends.tpm.backend import TpmBackend
else:
    # Lazy: backends of clouds use the client without this backend.
    __getattr__, __dir__ = lazy_names(__name__, {"backend": ("TpmBackend",)})

__all__ = ["TpmBackend"]
