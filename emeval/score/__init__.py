"""Metrics and their errors."""
