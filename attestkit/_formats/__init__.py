"""Strict readers of CBOR, JSON and TOML for untrusted input, and templates of HTML pages.

The readers limit depth and size. They check syntax only; the meaning of a document is checked where
it is used.
"""
