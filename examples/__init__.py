"""Worked examples that run with the project's own stages."""
