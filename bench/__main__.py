"""python3 -m bench: see bench/table.py. The processes of the sides import this file too, so it imports nothing."""

if __name__ == "__main__":
    from bench.table import main
    from utils.errors import run_cli

    run_cli(main)
