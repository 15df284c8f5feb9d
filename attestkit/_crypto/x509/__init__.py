"""X.509 certificates: chain validation, vendor roots, extensions, and issuing of certificates.

Which root is trusted is decided by the verifier.
"""
