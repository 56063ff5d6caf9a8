"""The REST API: FastAPI routes over the generation engine, carried by a BentoML service."""
