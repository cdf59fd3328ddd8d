"""How signatures are checked under pytest: an int will do where a float is asked for (PEP 484)."""

from beartype import BeartypeConf, beartype

check_signature = beartype(conf=BeartypeConf(is_pep484_tower=True))
