"""Strict readers of CBOR, JSON and TOML for untrusted input, with limits on depth and size.

They check syntax only; the meaning of a document is checked where it is used.
"""
