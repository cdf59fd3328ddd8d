"""Speed of each stage against its floor and its peer; run by hand, never by a test."""
