"""Findings: what a results table says, how sure that is, and which maps can be trusted."""
