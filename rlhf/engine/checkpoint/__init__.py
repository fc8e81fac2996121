"""Checkpoints: one directory is one commit, checked by sha256, renamed into place."""
