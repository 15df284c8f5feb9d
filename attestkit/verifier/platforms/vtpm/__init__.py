"""Verification that platforms behind a TPM share: quotes, attestation keys, logs of PCRs.

The order of the steps is that of each platform, in the modules beside this package.
"""
