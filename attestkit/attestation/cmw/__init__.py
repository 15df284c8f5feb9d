"""Evidence as a conceptual message wrapper (CMW): single records and collections.

JSON and CBOR; records of unknown types are returned unchanged, with their media type.
"""
