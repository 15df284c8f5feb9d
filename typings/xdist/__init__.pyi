# What the tests use of pytest-xdist, which ships no types.
