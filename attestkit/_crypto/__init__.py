"""The only importer of cryptography, coincurve, nacl and Keccak: bytes in, our errors out."""
