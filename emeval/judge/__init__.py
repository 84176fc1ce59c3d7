"""Judges: from a reply to a verdict."""
