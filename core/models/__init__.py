"""Models by role: loading, adapters, attention, weight sync."""
