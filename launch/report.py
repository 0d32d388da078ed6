"""The command `mappa-report`; mappa_jax/commands/report.py says what it does."""

from mappa_jax.commands.report import run

if __name__ == "__main__":
    run()
