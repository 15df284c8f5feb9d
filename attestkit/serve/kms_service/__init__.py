"""Simulated KMS over HTTPS: it releases keys to guests whose evidence it has verified.

It is for tests and development: it runs outside a TEE, so the administrator of its machine has
all keys. `attestkit.kms.release` decides and derives; nothing there listens on a socket.
"""
