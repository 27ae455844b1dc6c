"""The settings of a run: one dataclass a part, their docs, and values to dataclasses. Below everything else."""
