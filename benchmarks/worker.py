"""A contender's process: `python -m benchmarks.worker`, its job as the first line on standard input."""

from __future__ import annotations

import json
import sys

from benchmarks.gate import Gate


def main() -> None:
    """Read the job, then do it turn by turn."""
    gate = Gate()
    job = json.loads(sys.stdin.readline())
    if job["side"] == "rows":
        from benchmarks.ours import write_steps

        write_steps(job, gate)
    elif job["side"] == "build":
        from benchmarks.build_speed import work

        work(job, gate)
    elif job["side"] == "ours":
        from benchmarks.ours import race

        race(job, gate)
    else:
        from benchmarks.trl_side import race as race_trl

        race_trl(job, gate)


if __name__ == "__main__":
    main()
