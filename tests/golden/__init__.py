"""What a commit gave for one tiny recording, kept so that later commits can be held against it."""
