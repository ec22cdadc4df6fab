"""What other projects get: the wheel, its version, and signatures with types."""

import inspect
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from backends import once
from processes import ROOT, python

import gaaf
import main
import resnet_v1
import resnet_v2

PUBLIC = [gaaf.GAAF.__init__, gaaf.GAAF.__call__, gaaf.GAAF_relu, gaaf.GAAF_tanh, gaaf.get]
PUBLIC += [gaaf.to_gaaf, gaaf.to_plain, resnet_v1.resnet_v1, resnet_v2.resnet_v2, main.train]
PUBLIC += [resnet_v1.block_and_count]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@once
def test_the_wheel_has_the_modules_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {name for name in names if ".dist-info/" not in name}
    assert modules == {"gaaf.py", "resnet_v1.py", "resnet_v2.py"}


@once
def test_an_installed_wheel_is_all_that_is_needed(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", "site", wheel]
    subprocess.run(install, check=True, cwd=tmp_path, capture_output=True)
    code = (
        "import gaaf, resnet_v1, resnet_v2; "
        "assert gaaf.__file__.startswith({site!r}), gaaf.__file__; "
        "print(resnet_v1.resnet_v1((32, 32, 3), 8, activation='GAAF_relu').count_params(), "
        "resnet_v2.resnet_v2((32, 32, 3), 11).count_params())"
    ).format(site=str(tmp_path / "site"))
    run = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert run.returncode == 0, run.stderr
    networks = resnet_v1.resnet_v1((32, 32, 3), 8), resnet_v2.resnet_v2((32, 32, 3), 11)
    assert run.stdout.split() == [str(network.count_params()) for network in networks]


def test_there_is_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited.group(1) == version


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__qualname__)
def test_public_signatures_have_types(function):
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for name, parameter in signature.parameters.items():
        assert name == "self" or parameter.annotation is not inspect.Parameter.empty, name
