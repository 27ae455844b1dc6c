"""Code that several plugins share. Torch-free at import."""
