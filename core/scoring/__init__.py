"""Reward models and judges at work, behind time limits."""
