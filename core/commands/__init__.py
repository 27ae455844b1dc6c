"""What a user types and what the terminal shows."""
