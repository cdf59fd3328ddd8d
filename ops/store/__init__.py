"""Folders on remotes: what is saved, how, and how it comes back."""
