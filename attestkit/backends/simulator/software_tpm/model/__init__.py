"""A small TPM 2.0: commands in, responses out, with the response codes of a real TPM.

Structure and order of checks follow the TCG TPM 2.0 Library, version 1.59, Parts 1 to 3.
"""

from attestkit.backends.simulator.software_tpm.model.tpm_model import TpmModel
from attestkit.backends.simulator.software_tpm.model.tpm_state import TpmIdentity

__all__ = ["TpmIdentity", "TpmModel"]
