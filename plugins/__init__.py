"""Built-in plugins: every algorithm, engine and tracker that preftune ships."""
