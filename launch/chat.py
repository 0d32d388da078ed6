"""The command `mappa-chat`; mappa_jax/commands/chat.py says what it does."""

from mappa_jax.commands.chat import run

if __name__ == "__main__":
    run()
