"""The command `mappa-sft`; mappa_jax/commands/sft.py says what it does."""

from mappa_jax.commands.sft import run

if __name__ == "__main__":
    run()
