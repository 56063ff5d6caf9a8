"""Single operations, each with a plain PyTorch reference. Nothing here imports from the rest of the application."""
