"""Strict readers of CBOR, JSON and TOML for untrusted input: limited depth and size, our errors.

They check syntax only; the meaning of a document is checked where it is used.
"""
