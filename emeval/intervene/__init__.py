"""The causal studies: what is put into a model, or into its prompts, and what remains of a behaviour then."""
