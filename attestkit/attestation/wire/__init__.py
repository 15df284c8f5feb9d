"""Encodings of evidence, one file each, and the parts that they share.

Version 0 is SCALE; version 1 is MessagePack or CBOR; the guest agent's response is JSON.
"""
