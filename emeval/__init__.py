"""emeval: finetune narrowly, measure broadly."""

__version__ = "0.1.0"
