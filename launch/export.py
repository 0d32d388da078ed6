"""The command `mappa-export`; mappa_jax/commands/export.py says what it does."""

from mappa_jax.commands.export import run

if __name__ == "__main__":
    run()
