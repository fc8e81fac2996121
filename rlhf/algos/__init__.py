"""Tensor mathematics of RLHF: pure functions on tensors and integers; no configuration, no I/O."""
