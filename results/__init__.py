"""Results: the definitions of the tables, the ledger that fills them, and the commands that run, draw and reproduce."""
