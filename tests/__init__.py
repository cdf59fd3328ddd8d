"""A package, so that `tests.` means this folder and not one that a dependency installs."""
