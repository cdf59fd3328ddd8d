"""What the speed benchmarks share: drawn data, peers, clocks."""
