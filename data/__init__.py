"""Data sets and pipelines: from image files to a Batch of views. Nothing here knows the methods or evaluations."""
