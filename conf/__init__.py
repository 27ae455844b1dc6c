"""Presets. Defaults live in the dataclasses of core and of the plugins; a file here only bundles choices."""
