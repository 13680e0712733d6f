"""The ground: what every room stands on. Knows nobody but the libraries."""
