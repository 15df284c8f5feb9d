"""Readers of CBOR, JSON and TOML that take hostile input: strict, bounded in depth, our errors out.

They know the form alone; what a document means is known where it is used.
"""
