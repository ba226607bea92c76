"""Commands: options in, exit code out. One file each; what is done stands in workflows/."""

from pianogen_hf.commands.pianogen import main

__all__ = ["main"]
