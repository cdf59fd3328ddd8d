"""World tokens: codebook, corruptions, statistics, analysis."""
