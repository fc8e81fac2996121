"""What a run says about itself: logs, metrics, progress, memory, versions and the report."""
