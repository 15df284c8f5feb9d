"""The TPM of simulated machines: a model in Python, or a swtpm process behind a proxy.

Both offer `execute(command) -> response`.
"""

from attestkit.backends.simulator.software_tpm.hooks import TpmHooks, VirtualIndex
from attestkit.backends.simulator.software_tpm.model import TpmIdentity, TpmModel

__all__ = ["TpmHooks", "TpmIdentity", "TpmModel", "VirtualIndex"]
