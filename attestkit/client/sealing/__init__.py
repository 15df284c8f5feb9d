"""Bodies of requests that are sealed to an attested key, and answers that only the client opens.

Bytes in, bytes out: `wire` does the I/O.
"""
