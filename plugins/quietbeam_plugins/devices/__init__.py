"""Built-in plugins, found through entry points as anybody's are."""
