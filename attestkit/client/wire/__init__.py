"""Connections on which a server's attestation is verified before they carry a request."""
