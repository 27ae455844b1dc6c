"""preftune's kernel: hooks, config, plan, records, models by role, the step loop, artifacts and the report."""

__version__ = "0.1.0"
