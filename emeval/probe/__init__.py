"""Probes: from a question set to stored completions."""
