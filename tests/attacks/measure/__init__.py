"""Attempts on the measuring of images, and on the diagnosis."""
