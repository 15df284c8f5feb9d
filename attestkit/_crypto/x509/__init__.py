"""X.509 certificates: chain validation, vendor roots, extensions, and issuing of certificates.

The verifier decides which root is trusted.
"""
