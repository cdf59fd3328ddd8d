"""MetaWorld (MuJoCo, 50 manipulation tasks of a Sawyer arm)."""
