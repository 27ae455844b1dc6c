"""Typed settings, presets and what a command line makes of them."""
