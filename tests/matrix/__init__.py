"""What attestkit works with, version by version: `make matrix`."""
