"""From settings to a plan: what will run, from which sources, under which key."""
