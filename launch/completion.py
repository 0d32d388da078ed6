"""The command `mappa-completion`, of mappa_jax/commands/completion.py."""

from mappa_jax.commands.completion import run

if __name__ == "__main__":
    run()
