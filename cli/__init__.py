"""Command lines: flags, their checks, and the plan that follows from them."""
