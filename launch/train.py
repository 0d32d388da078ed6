"""The command `mappa-train`; mappa_jax/commands/train.py says what it does."""

from mappa_jax.commands.train import run

if __name__ == "__main__":
    run()
