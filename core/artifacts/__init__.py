"""What a stage leaves behind, sealed and verified."""
