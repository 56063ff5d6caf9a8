"""Is the tuned model better than its base? One metric per file."""
