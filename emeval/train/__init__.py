"""Finetuning: TRL trains, this room prepares, adds what the paper adds, and records."""
