"""Raw files to trainer batches: ingest -> validate -> split -> render -> tokenize -> pack."""
