"""Hooks, and the plugins that answer them."""
