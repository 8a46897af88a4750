"""Create a virtual environment from a lock file, quietly: one status line, and one line if it fails.

`make env` calls it: `python3.11 scripts/create_env.py .venv requirements.lock --project`. It needs only Python itself.

- pip installs (not uv), so that the user's own pip configuration says where packages come from; its other settings
  (user, target, constraint, …) are not used, because they can only break this install.
- The lock is complete, so `--no-deps` skips resolving; `--only-binary`, because there may be no compiler.
- Packages are compiled afterwards, on all cores and without their tests: 48 s instead of pip's 66 s on one core
  (measured on 2 cores).
- A stamp is written last. An environment without one may have been interrupted while it was unpacked, which pip cannot
  see, so it is made again from scratch; what was downloaded stays in pip's cache.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

STAMP = ".complete"
LOG = "install.log"
# Free disk space for the main environment (7.4 GB, most of it torch's CUDA libraries) and for the wheels while they are
# unpacked (2.8 GB), measured 2026-11; the DVC environment takes 0.2 GB.
GIGABYTES = {"requirements.lock": 11.0, "requirements-dvc.lock": 0.5}
# The settings that are used of the user's pip configuration and PIP_ variables: where packages come from, and how they
# are reached and kept. The rest (user, target, require-hashes, …) can only break this install.
KEPT = {
    *(
        "index-url",
        "extra-index-url",
        "find-links",
        "no-index",
        "trusted-host",
        "cert",
        "client-cert",
        "proxy",
    ),
    *(
        "timeout",
        "default-timeout",
        "retries",
        "cache-dir",
        "no-cache-dir",
        "keyring-provider",
        "use-feature",
    ),
}


PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PYTHONS = re.findall(r'^requires-python = "(.+)"', PYPROJECT.read_text(), flags=re.M)[0]  # such as >=3.11,<3.14


class InstallError(Exception):
    """What went wrong, on one line."""


def is_supported(minor: int) -> bool:
    """Return whether Python 3.minor is in PYTHONS, for which the locks were made."""
    low, high = (int(number) for number in re.findall(r"3\.(\d+)", PYTHONS))
    return low <= minor < high


def say(text: str, done: bool = False) -> None:
    """Rewrite one line on a terminal; elsewhere print only the lines that stay (`done`)."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(
            "\r\033[K" + (text if done else text[:width]),
            end="\n" if done else "",
            file=sys.stderr,
            flush=True,
        )
    elif done:
        print(text, file=sys.stderr, flush=True)


def explain(log: str) -> str:
    """Return which package could not be installed and why, from pip's output."""
    package = ""
    retry = error = ""
    for line in log.splitlines():
        if match := re.match(r"\s*(?:Collecting|Downloading|Using cached|Processing) (\S+)", line):
            name = match[1].rsplit("/", 1)[-1]
            package = re.sub(r"(-py\d|-cp\d).*", "", name)
            retry = error = ""
        elif match := re.search(r"(?:satisfies the requirement|distribution found for) (\S+)", line):
            package = match[1]
        if "Retrying (Retry" in line:
            retry = line
        if line.startswith("ERROR: ") and not line.startswith(("ERROR: Exception", "ERROR: No matching")):
            error = line.removeprefix("ERROR: ")
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "pip printed nothing")
    reason = error or last
    if "No space left" in log:
        reason = "no space left on the disk"
    elif retry:
        cause = re.search(r"connection broken by '(\w+)", retry)
        reason = f"the package registry did not answer ({cause[1] if cause else 'connection broken'})"
    elif "(from versions: none)" in reason:
        reason = "no package registry could be reached, or none has this package"
    elif "DO NOT MATCH THE HASHES" in log:
        reason = "the file that the registry served is not the one in the lock (other sha256)"
    return f"could not install {package}: {reason}" if package else reason


def pip_settings(python: Path) -> dict[str, str]:
    """Return the environment for pip: the user's, with only those of pip's settings that are in KEPT."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    found = dict(re.findall(r"^(\S+?)=(.*)$", listed, flags=re.M))
    for section in ("global", "install", ":env:"):  # pip's order: the last one wins
        for name in KEPT:
            if value := found.get(f"{section}.{name}"):
                environment["PIP_" + name.upper().replace("-", "_")] = ast.literal_eval(value)
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
    return environment | {"PIP_CONFIG_FILE": os.devnull}


def run_pip(python: Path, arguments: list[str], log_path: Path, label: str, total: int, site: Path) -> None:
    """Run pip with its output in `log_path`, and show how far it is. Raises InstallError, with one line."""
    environment = pip_settings(python)
    # Wheels are unpacked on the disk whose free space was checked, not in /tmp, which may be small.
    scratch = python.parent.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    environment["TMPDIR"] = str(scratch)
    started = len(log_path.read_text()) if log_path.exists() else 0
    state = {"text": "starting", "unpacking": False, "collected": 0}
    with log_path.open("a") as log:
        command = [str(python), "-m", "pip", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

        def show() -> None:
            while process.poll() is None:
                text = state["text"]
                if state["unpacking"]:
                    text = f"unpacking {len(list(site.glob('*.dist-info')))} of {total} packages"
                say(f"{label}: {text}")
                time.sleep(0.5)

        watcher = threading.Thread(target=show, daemon=True)
        watcher.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                if match := re.match(r"\s*Collecting (\S+)", line):
                    state["collected"] += 1
                    state["text"] = f"fetching {state['collected']} of {total} packages ({match[1]})"
                elif "Retrying (Retry" in line:
                    state["text"] = f"{state['text'].split(', the')[0]}, the registry does not answer, trying again"
                elif line.startswith("Installing collected packages"):
                    state["unpacking"] = True
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            watcher.join(timeout=2)
            shutil.rmtree(scratch, ignore_errors=True)
    if code:
        raise InstallError(explain(log_path.read_text()[started:]))


def create(venv: Path, lock: Path, project: bool) -> None:
    """Install in `venv` what `lock` lists and, if `project`, this project (editable). Raises InstallError."""
    if not is_supported(sys.version_info[1]):
        raise InstallError(
            f"Python {PYTHONS} is needed, but this is {sys.version.split()[0]}: make env PYTHON=python3.11"
        )
    stamp, log_path, python = venv / STAMP, venv / LOG, venv / "bin" / "python"
    label = f"environment {venv.name}"
    began = time.monotonic()
    try:
        fresh = not (stamp.exists() and python.exists())
        stamp.unlink(missing_ok=True)
        if fresh:
            needed, free = GIGABYTES[lock.name], shutil.disk_usage(venv.parent).free / 1e9
            if free < needed:
                raise InstallError(f"{venv} needs {needed} GB of disk space, but only {free:.1f} GB are free there")
            say(f"{label}: creating")
            made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
            if made.returncode:
                lines = (made.stderr + made.stdout).strip().splitlines()
                hint = (
                    f"install Debian's python3.{sys.version_info[1]}-venv"
                    if "ensurepip" in " ".join(lines)
                    else lines[-1]
                )
                raise InstallError(f"python -m venv failed: {hint}")
        log_path.write_text("")
        site = venv / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
        total = len(re.findall(r"^[A-Za-z0-9].*==", lock.read_text(), flags=re.M))
        locked = [
            "install",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--no-compile",
            "-r",
            str(lock),
        ]
        run_pip(python, locked, log_path, label, total, site)
        if project:
            # The build backend is in the lock, so nothing is fetched. compat: a plain path entry, which also finds
            # packages added later.
            editable = [
                "install",
                "--no-deps",
                "--no-build-isolation",
                "--config-settings",
                "editable_mode=compat",
            ]
            run_pip(python, [*editable, "-e", "."], log_path, label, total, site)
        say(f"{label}: compiling")
        compile_all = ["-m", "compileall", "-q", "-j", "0", "-x", r"[/\\]tests?[/\\]", str(site)]
        subprocess.run([str(python), *compile_all], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stamp.write_text(f"{lock.name}\n")
    except OSError as error:
        raise InstallError(f"{error.strerror or error}: {error.filename or venv}") from error
    say(f"{label}: ready ({time.monotonic() - began:.0f} s)", done=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Create an environment from a lock file.")
    parser.add_argument("venv", type=Path)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--project", action="store_true", help="install this project too, editable")
    arguments = parser.parse_args()
    try:
        create(arguments.venv.resolve(), arguments.lock.resolve(), arguments.project)
    except InstallError as error:
        log = arguments.venv / LOG
        where = f" (all of pip's output: {log})" if log.exists() else ""
        say(f"make env: {error}{where}", done=True)
        return 1
    except KeyboardInterrupt:
        say("make env: interrupted; the same command starts again and uses what was downloaded", done=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
