"""OCSP (RFC 6960): requests, answers, and the check of an answer about a certificate.

The profile is that of NVIDIA's responders: one certificate a message, delegated responders, and
ECDSA P-384 with SHA-384.
"""
