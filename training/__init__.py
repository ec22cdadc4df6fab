"""What `main.py` is made of. Imports go one way: main → training → the networks → gaaf."""


class Mistake(ValueError):
    """Something that the user can put right; the command line tells it in one line."""
