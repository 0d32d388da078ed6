"""The command `mappa-sweep`; mappa_jax/commands/sweep.py says what it does."""

from mappa_jax.commands.sweep import run

if __name__ == "__main__":
    run()
