"""Namespaces in which `attestkit run` starts a program: mounts, and a network of its own."""
