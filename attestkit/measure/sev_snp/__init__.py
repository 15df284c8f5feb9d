"""Launch digests of SEV-SNP guests, computed from firmware, kernel and the VMM's conventions."""
