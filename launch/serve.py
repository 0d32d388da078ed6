"""The command `mappa-serve`; mappa_jax/commands/serve.py says what it does."""

from mappa_jax.commands.serve import run

if __name__ == "__main__":
    run()
