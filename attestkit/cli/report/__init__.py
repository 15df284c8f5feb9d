"""The HTML page of `report`: evidence and its verification result in one file.

The page loads no other resource.
"""
