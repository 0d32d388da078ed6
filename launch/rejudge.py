"""The command `mappa-rejudge`; mappa_jax/commands/rejudge.py says what it does."""

from mappa_jax.commands.rejudge import run

if __name__ == "__main__":
    run()
