"""From records to token ids, and which of them are trained."""
