"""Encryption of requests to an attested key (sealing), and decryption of their answers (opening).

Bytes in, bytes out: `wire` does the I/O.
"""
