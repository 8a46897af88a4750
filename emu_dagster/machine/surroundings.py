"""Where a project may lie, and what must be set for it: without git, data/ on another disk, a home that cannot be
written. One function for whoever is about to work and for `emu doctor`.
"""

import os
from configparser import ConfigParser
from pathlib import Path

from emu_data.files import atomic_file

DVC_SITE_CACHE = Path("/var/tmp/dvc")  # DVC 3.67's own default, shared by all users of a machine


def refuse_surroundings(root: Path) -> None:
    """ValueError with one sentence when work in `root` could not be recorded. What can be arranged for is."""
    if found := find_obstacles(root):
        raise ValueError(found[0])
    let_dvc_do_without_git(root)


def find_obstacles(root: Path) -> list[str]:
    """What keeps a project in `root` from being worked in, a sentence each with what to do."""
    found = [
        f"{root / name} is missing: {mend}"
        for name, mend in (
            ("params.yaml", "`emu profile emoji` writes it, or set EMU_ROOT to the project's folder"),
            (".dvc", "copy it from the repository too (archives leave hidden folders out), or `dvc init --no-scm`"),
        )
        if not (root / name).exists()
    ]
    data = root / "data"
    if data.is_symlink() and not data.exists():
        found.append(f"{data} is a link to {os.readlink(data)}, where nothing is: mount that disk, or make the folder")
    for folder in (root, root / ".dvc", root / ".dvc" / "tmp", root / ".dvc" / "cache", root / "mlflow", data):
        if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
            found.append(
                f"{folder} is no folder that user {os.getuid()} can write to: work on a copy of the project, or "
                "`chmod -R u+rwX` it"
            )
    return found


def dvc_environment(root: Path) -> dict[str, str]:
    """The variables for a dvc of the project in `root`; its state database goes to .dvc/tmp where DVC's own place for
    it cannot be written."""
    chosen = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    if not _is_writable(DVC_SITE_CACHE):
        chosen.setdefault("DVC_SITE_CACHE_DIR", str(root / ".dvc" / "tmp" / "emu" / "site"))
    return chosen


def let_dvc_do_without_git(root: Path) -> None:
    """Switches DVC's use of git off, in .dvc/config.local, where it would refuse to work: there is no git (an unpacked
    archive, a container), or data/ is a link and what it holds "outside of git repository"."""
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
