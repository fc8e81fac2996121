"""A distributed RLHF training system: people's opinions into model weights."""

__version__ = "0.1.0"
