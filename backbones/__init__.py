"""Backbones: build by name, load any checkpoint, export for other libraries."""
