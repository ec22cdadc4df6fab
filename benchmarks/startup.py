"""How soon `main.py` answers where nothing is to be trained: --help, and a mistake in a setting.

python benchmarks/startup.py
"""

import statistics
import subprocess
import sys

from common import ROOT, in_turn, report

ROUNDS = 9
CALLS = {
    "main.py --help": ["--help"],
    "main.py --depth 21, refused": ["--depth", "21"],
    "main.py --data missing.npz, refused": ["--data", "missing.npz"],
}


def call(arguments):
    command = [sys.executable, ROOT / "main.py", *arguments]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == (0 if arguments == ["--help"] else 2), done.stderr


seconds = in_turn({name: lambda a=a: call(a) for name, a in CALLS.items()}, ROUNDS)
figures = [(name, f"{statistics.median(values):.2f} s", "2") for name, values in seconds.items()]
report(figures, ROUNDS)
