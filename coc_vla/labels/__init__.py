"""Labels: the record, its file, the episodes that they are made from."""
