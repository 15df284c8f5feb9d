"""What a simulated KMS decides and derives: roots, keys, certificates, authorization.

Nothing here listens on a socket. A simulated KMS is for tests: it runs outside a TEE.
"""
