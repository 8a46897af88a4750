"""Every command in the README is run as it is shown there, or listed here with where it is run."""

import json
import re
import shlex
import subprocess
import time
import urllib.request

import pytest

from tests.e2e.conftest import TOP, Project
from tests.e2e.pages import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

README = (TOP / "README.md").read_text()
PROGRAMS = r"(?:[A-Z_]+=\S+ +)*(?:emu|make|mlflow|curl|source|git|dvc|ray|torchrun|accelerate|python|pytest|dagster) "
# What is not run in this file, and where it is run.
ELSEWHERE = {
    r"source \.venv/bin/activate": "tests run in that environment",
    r"emu profile NAME": "NAME is the reader's; the fixture `demo` and tests/e2e/test_from_the_page.py write profiles",
    r"emu profile photos --overwrite": "tests/e2e/test_first_corpus.py, in a project of its own",
    r"emu studio( --demo| open generalist| invite .*| close generalist)?": "tests/emu_studio, tests/emu_dagster",
    r"emu materialize corpus_report --upstream": "tests/e2e/test_first_corpus.py, in a project of its own",
    r"emu plan .*": "half a minute; tests/emu_dagster/test_plan.py plans the same",
    r"torchrun --nproc-per-node 8 .*": "of launch.command; tests/emu_models/test_training_distributed.py runs two",
    r"python -m emu_dagster.training.ray_job": "a value of launch.command; tests/emu_dagster/test_ray_job.py",
    r"emu materialize quality_tuned": "it trains; the fixture `demo` materialises it",
    r"emu ingest (ADDRESS|s3://bucket/corpus)": "tests/emu_dagster/test_ingest.py and tests/emu_data/test_addresses.py",
    r"(MLFLOW_TRACKING_URI=\S+ )?mlflow models serve .*": "test_the_served_model_answers_as_the_readme_says",
    r"curl 127\.0\.0\.1:5001/invocations .*": "test_the_served_model_answers_as_the_readme_says",
}


def shown_commands() -> list[str]:
    """Return the lines of code blocks, and code in the text, that begin with a program; without comments."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    lines = [re.split(r"\s+# ", line)[0].strip() for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    return list(dict.fromkeys(text for text in (*lines, *inline) if re.match(PROGRAMS, f"{text} ") and " " in text))


RUN_ELSEWHERE = [one for one in shown_commands() if any(re.fullmatch(other, one) for other in ELSEWHERE)]
OF_MAKE = [one for one in shown_commands() if one.startswith("make ") and one not in RUN_ELSEWHERE]
RUN_HERE = [one for one in shown_commands() if one not in RUN_ELSEWHERE and one not in OF_MAKE]


def test_commands_are_found_and_every_exception_is_used():
    assert len(RUN_HERE) >= 8 and len(OF_MAKE) >= 4
    assert all(any(re.fullmatch(other, one) for one in RUN_ELSEWHERE) for other in ELSEWHERE)


@pytest.mark.parametrize("command", OF_MAKE)
def test_a_target_of_make_exists(command: str):
    """The fixture `demo` and other tests run the commands of emu that it calls."""
    done = subprocess.run([*shlex.split(command), "-n"], cwd=TOP, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def registered(project: Project) -> str:
    found = json.loads((project.root / "data/registered_model.json").read_text())
    return f"models:/{found['name']}@{found['alias']}"


@pytest.mark.parametrize("command", RUN_HERE)
def test_a_command_of_the_readme_does_what_it_says(demo, command: str):
    """In the finished project, with the name and alias of the smoke profile's model."""
    project, _ = demo
    given = re.sub(r"models:/emu@\w+", registered(project), command)
    if given.startswith("emu generate") and "--model" not in given:
        given += f" --model {registered(project)}"  # the default is a champion, which the toy model is not
    printed = project.must(*shlex.split(given), timeout=400)
    assert printed.strip() and "Traceback" not in printed


def test_the_served_model_answers_as_the_readme_says(demo):
    project, _ = demo
    (serve,) = [one for one in shown_commands() if "mlflow models serve" in one]
    (ask,) = [one for one in shown_commands() if one.startswith("curl ")]
    port = free_port()
    line = re.sub(r"models:/emu@\w+", registered(project), serve).replace("5001", str(port))
    process = subprocess.Popen(
        ["bash", "-c", f"exec env {line}"],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        done = project.run("bash", "-c", ask.replace("5001", str(port)).replace("curl ", "curl -s "))
        assert json.loads(done.stdout)["predictions"][0].startswith("iVBOR"), done.stdout[:500]  # a PNG in base64
        wrong = ask.replace('"seed": 1', '"num_inference_steps": 0').replace("5001", str(port))
        done = project.run("bash", "-c", wrong.replace("curl ", "curl -s -w '%{http_code}' "))
        assert done.stdout.endswith("400") and "num_inference_steps is 0" in done.stdout, done.stdout
    finally:
        process.terminate()
        process.wait(60)


def wait_for(address: str, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")
