"""Appraisal policies: rules for authentic evidence, as objects and as TOML files.

`AppraisalPolicy` has the rules. The error for rejected evidence names the first unmet rule.
"""
