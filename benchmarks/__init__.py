"""Speed and memory of preftune beside TRL, on the same rows in the same run. See README.md."""
