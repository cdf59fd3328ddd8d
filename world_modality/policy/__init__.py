"""The network, its losses, its predictions, its checkpoint."""
