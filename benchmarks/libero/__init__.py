"""LIBERO: simulator, demonstrations, evaluation."""
