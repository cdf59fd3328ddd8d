"""What happens in an episode, read from states and actions, and what a text claims of it."""
