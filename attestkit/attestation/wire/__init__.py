"""The encodings of evidence, a file each, and the parts that they share.

Version 0 is SCALE, version 1 msgpack or CBOR, and an agent's response is JSON.
"""
