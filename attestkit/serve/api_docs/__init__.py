"""API documentation: OpenAPI document, .proto files, and an HTML page.

Generated from the methods themselves.
"""
