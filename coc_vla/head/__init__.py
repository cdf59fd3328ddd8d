"""The explaining head: text targets, decoding, evaluation."""
