"""The TPM of simulated machines: a model in Python, or a swtpm process behind a proxy.

Both offer `execute(command) -> response`; `stream_server` serves either on a socket.
"""

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks, VirtualIndex
from attestkit.backends.simulator.software_tpm.model import TpmIdentity, TpmModel
from attestkit.tpm.command_codes import NITRO_ATTEST

__all__ = ["NITRO_ATTEST", "TpmHooks", "TpmIdentity", "TpmModel", "VirtualIndex"]
