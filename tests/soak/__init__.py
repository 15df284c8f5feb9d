"""The server under mixed load for an hour: `make soak`."""
