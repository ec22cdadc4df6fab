"""What `main.py` is made of. Imports go one way: main → training → the networks → gaaf.

Everywhere `settings` are those of main.py, `data` is a `training.data.Data`, `directory` the
`pathlib.Path` of a run, and `rows` is its history, dictionaries as in history.csv.
"""


class Mistake(ValueError):
    """Something that the user can put right; the command line tells it in one line."""


def reason(error):
    """What an exception says, in one line of 300 characters at most; or else its kind."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:299]}…"
