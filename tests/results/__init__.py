"""Tests of the tables of results and of the ledger that fills them."""
