"""`make env` fails in one line that names the package, whatever pip says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

SCRIPT = Path(__file__).parents[1] / "scripts" / "create_env.py"
spec = importlib.util.spec_from_file_location("create_env", SCRIPT)
assert spec and spec.loader
create_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(create_env)

# Lines as pip 23 to 26 write them.
COLLECTED = """\
Collecting torch==2.14.1 (from -r requirements.lock (line 4))
  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (1 MB)
"""
RETRIED = """\
Collecting rich==15.0.0 (from -r requirements.lock (line 3))
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('…')': /simple/torch/
"""
ABSENT = """\
ERROR: Could not find a version that satisfies the requirement torch==2.14.1 (from versions: none)
ERROR: No matching distribution found for torch==2.14.1
"""
HASHES = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated …
    torch==2.14.1:
"""
FULL = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
TIMEOUT = """\
ERROR: Exception:
Traceback (most recent call last):
pip._vendor.urllib3.exceptions.ReadTimeoutError: HTTPSConnectionPool: Read timed out.
"""


@pytest.mark.parametrize(
    ("log", "package", "reason"),
    [
        (RETRIED + ABSENT, "torch==2.14.1", "did not answer (NewConnectionError)"),
        (ABSENT, "torch==2.14.1", "no package registry could be reached"),
        (COLLECTED + HASHES, "torch-2.14.1", "other sha256"),
        (COLLECTED + FULL, "torch-2.14.1", "no space left on the disk"),
        (COLLECTED + TIMEOUT, "torch-2.14.1", "Read timed out"),
    ],
    ids=["unreachable", "absent", "hashes", "disk", "timeout"],
)
def test_reason_is_one_line_with_the_package(log: str, package: str, reason: str) -> None:
    reported = create_env.explain(log)
    assert package in reported and reason in reported
    assert "\n" not in reported


def test_unreachable_registry_ends_in_one_line(tmp_path: Path) -> None:
    """With a real index at which nothing listens, and settings that break an install into an environment."""
    lock = tmp_path / "requirements-dvc.lock"
    lock.write_text(f"no-such-package==1.0 --hash=sha256:{'0' * 64}\n")
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\nretries = 0\n[install]\nuser = true\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "venv", lock],
        env=environment | {"PIP_CONFIG_FILE": str(settings)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("make env: could not install no-such-package==1.0: ")
    assert str(tmp_path / "venv" / "install.log") in line
    assert not (tmp_path / "venv" / ".complete").exists()


def test_the_accepted_pythons_are_those_of_pyproject() -> None:
    taken = [minor for minor in range(6, 30) if create_env.is_supported(minor)]
    assert taken and taken == [minor for minor in range(6, 30) if f"3.{minor}.9" in SpecifierSet(create_env.PYTHONS)]
