"""Verification of the evidence of each platform: signatures, certificates, and logs of PCRs.

One module or package for each kind of evidence; `vtpm` has what platforms behind a TPM share.
"""
