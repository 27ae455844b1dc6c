"""What several built-in plugins share: raw text, and drawing tokens alike in every rollout engine."""
