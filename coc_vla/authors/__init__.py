"""Who writes a label: rules, a local model, a server."""
