"""What commands print and write: for people, for pipes, and into files.

Text of strangers is made harmless before it gets to a terminal.
"""
