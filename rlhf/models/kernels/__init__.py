"""Compiled steps between the matrix products of a decoder layer on a CPU, and what stands in for them."""
