"""Launching: submitting stages to a Ray cluster, and what a cluster needs."""
