"""The preference store, its queue, statistics and web page."""
