"""Backend for AWS EC2 instances with a NitroTPM: attestation documents, and events in PCR 14."""

from attestkit.backends.nitro_tpm.backend import BANK, NitroTpmBackend

__all__ = ["BANK", "NitroTpmBackend"]
