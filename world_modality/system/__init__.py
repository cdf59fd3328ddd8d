"""What every stage needs of the machine: command line, errors, whole files, locks, signals."""
