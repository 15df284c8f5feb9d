"""Encryption of requests to an attested key, and decryption of their answers.

Bytes in, bytes out: `wire` does the I/O.
"""
