"""What models are trained on and asked: formats, loading, validation."""
