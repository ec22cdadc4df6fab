"""Whether GAAF ends in flatter minima: test accuracy of trained networks with disturbed weights.

    python -m study.flatness --data PATH

The networks are the models in study/results. Each array w of trained weights becomes

    w + size·‖w‖·n/‖n‖

where n is normal noise. A network in a flat minimum loses little accuracy. The results go into
study/results/flatness.csv, a line for each model, size and draw of the noise.
"""

import argparse
import itertools
from pathlib import Path

from training import console

console.prepare_environment()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from training import Mistake  # noqa: E402
from training.data import load  # noqa: E402
from training.evaluate import accuracy_of, load_model  # noqa: E402
from training.files import read_csv, write_csv  # noqa: E402
from training.model import require_fitting  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "flatness.csv"
SIZES = 0.005, 0.01, 0.02
DRAWS = 8


def disturbed(weights, size, draw):
    """The weights after a step of `size` times their norm, array by array.

    The draw gives the direction, the same for all sizes, and for all networks of an architecture.
    """
    random, found = np.random.default_rng(draw), []
    for w in weights:
        noise = random.standard_normal(w.shape)
        found.append(w + size * np.linalg.norm(w) * noise / np.linalg.norm(noise))
    return found


def lines_of(path, images):
    """The lines of the results of one model: the first is of its own weights, with size 0."""
    model = load_model(path)
    require_fitting(model, images, "model", f"'{path}'")
    variables = model.trainable_variables
    weights = [keras.ops.convert_to_numpy(variable) for variable in variables]
    lines = []
    for size, draw in [(0, 0), *itertools.product(SIZES, range(DRAWS))]:
        for variable, values in zip(variables, disturbed(weights, size, draw), strict=True):
            variable.assign(values)
        accuracy = accuracy_of(model, images.x_test, images.y_test)
        lines.append({"model": path.stem, "size": size, "draw": draw, "accuracy": accuracy})
    return lines


def study(source, results=RESULTS):
    """Measures the models beside the results that these do not hold yet, and adds them.

    Raises:
        Mistake: if the results are of other data, or there is no such data.
    """
    data, lines = Path(source).stem, read_csv(results)
    if others := {line["data"] for line in lines} - {data}:
        allowed = f"allowed while {results} is there is its {', '.join(others)}"
        raise Mistake(f"data: {allowed}; received {data}")
    images = load(source)
    measured = {line["model"] for line in lines}
    for path in sorted(results.parent.glob("*.keras")):
        if path.stem not in measured:
            print(path.stem, flush=True)
            lines += [{"data": data} | line for line in lines_of(path, images)]
            write_csv(results, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="as of main.py; default cifar10")
    try:
        study(parser.parse_args().data)
    except Mistake as mistake:
        parser.error(str(mistake))
