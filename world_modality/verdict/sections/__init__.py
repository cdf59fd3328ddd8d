"""The sections of the report, a function each."""
