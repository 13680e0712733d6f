"""Pipelines: data modules that turn images into batches of views, each in its own way, with the same result."""
