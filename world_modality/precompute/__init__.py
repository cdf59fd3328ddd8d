"""What turns a source into a cache: inputs, passes, shards."""
