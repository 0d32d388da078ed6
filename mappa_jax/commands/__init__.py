"""The commands: what launch/ and the console scripts of setup.py run.

Only this package reads flags and environment variables.
"""
