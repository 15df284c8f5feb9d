"""What commands are given: files and standard input, and which format they are in.

Whatever comes is hostile, and bounded in size.
"""
