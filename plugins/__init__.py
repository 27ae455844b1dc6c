"""The built-in plugins. Each is found by its entry point, exactly as a third party's is."""
