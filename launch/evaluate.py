"""The command `mappa-evaluate`; mappa_jax/commands/evaluate.py says what it does."""

from mappa_jax.commands.evaluate import run

if __name__ == "__main__":
    run()
