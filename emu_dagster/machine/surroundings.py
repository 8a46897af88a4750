"""Where a project can work, and what must be set up for it: without git, with data/ on another disk, with a home folder
that is not writable. The commands and `emu doctor` use the same checks.
"""

import os
from configparser import ConfigParser
from pathlib import Path

from emu_data.files import atomic_file

DVC_SITE_CACHE = Path("/var/tmp/dvc")  # DVC 3.67's default, shared by all users of a machine


def refuse_surroundings(root: Path) -> None:
    """Raise ValueError, with one sentence, if work in `root` could not be recorded. What can be set up automatically is
    set up.
    """
    if found := find_obstacles(root):
        raise ValueError(found[0])
    let_dvc_do_without_git(root)


def find_obstacles(root: Path) -> list[str]:
    """Return what prevents work on a project in `root` and what to do about it, one sentence per obstacle."""
    found = [
        f"{root / name} is missing: {fix}"
        for name, fix in (
            ("params.yaml", "`emu profile emoji` writes it, or set EMU_ROOT to the project's folder"),
            (".dvc", "copy it from the repository (archives omit hidden folders), or run `dvc init --no-scm`"),
        )
        if not (root / name).exists()
    ]
    data = root / "data"
    if data.is_symlink() and not data.exists():
        found.append(
            f"{data} is a link to {os.readlink(data)}, which does not exist: mount that disk, or make the folder"
        )
    for folder in (root, root / ".dvc", root / ".dvc" / "tmp", root / ".dvc" / "cache", root / "mlflow", data):
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            found.append(
                f"{folder} is not a folder that user {os.getuid()} can write to: work on a copy of the project, or "
                "`chmod -R u+rwX` it"
            )
    return found


def dvc_environment(root: Path) -> dict[str, str]:
    """Return the environment for running dvc in the project `root`. If DVC's default folder for its state database is
    not writable, the database is kept in .dvc/tmp.
    """
    chosen = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    if not _is_writable(DVC_SITE_CACHE):
        chosen.setdefault("DVC_SITE_CACHE_DIR", str(root / ".dvc" / "tmp" / "emu" / "site"))
    return chosen


def let_dvc_do_without_git(root: Path) -> None:
    """Switch off DVC's use of git, in .dvc/config.local, if DVC would otherwise refuse to work: if there is no git
    repository (an unpacked archive, a container), or if data/ is a link, so that its content is "outside of git
    repository".
    """
    local = root / ".dvc" / "config.local"
    has_git = any((folder / ".git").exists() for folder in (root, *root.parents))
    if has_git and not (root / "data").is_symlink():
        return
    config = ConfigParser()
    config.read([root / ".dvc" / "config", local])
    if config.has_option("core", "no_scm"):
        return
    config = ConfigParser()
    config.read(local)
    if not config.has_section("core"):
        config.add_section("core")
    config.set("core", "no_scm", "true")
    with atomic_file(local) as partial, partial.open("w") as file:
        config.write(file)


def _is_writable(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    return os.access(path, os.W_OK | os.X_OK)
