"""What `import innervision` offers."""

import subprocess
import sys

import pytest

import innervision


@pytest.mark.parametrize("name", innervision.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(innervision, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = innervision.no_such_name


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, innervision; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
