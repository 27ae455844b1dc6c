"""What a stage would train on, and what it would cost."""
