"""Runs: folder, resume, loggers, callbacks, checkpoints, Trainer."""
