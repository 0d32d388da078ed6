"""The command `mappa-weights`; mappa_jax/commands/weights.py says what it does."""

from mappa_jax.commands.weights import run

if __name__ == "__main__":
    run()
