"""NewProject: what `flashlake init` writes. A project of its own: configuration, two tables with a job, the Dagster code location.

The files are flashlake/templates/project/**, less their ending .template. Nothing that exists is overwritten.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from flashlake.config import FILE_NAME, render_toml
from storage_engine.errors import AlreadyExists

TEMPLATE = Path(__file__).with_name("templates") / "project"
ENDING = ".template"


def make_project(folder: Path) -> list[Path]:
    """Write a new project into `folder`, which is made when it does not exist; the files written.

    Errors: AlreadyExists naming the first file that is in the way; then nothing is written.
    """
    first_day = datetime.now(UTC).date().replace(day=1).isoformat()
    files = {
        folder / str(path.relative_to(TEMPLATE)).removesuffix(ENDING): path.read_text(encoding="utf-8").replace("{first_day}", first_day)
        for path in sorted(TEMPLATE.rglob("*" + ENDING))
    }
    files[folder / FILE_NAME] = render_toml()
    for path in files:
        if path.exists():
            raise AlreadyExists(f"{path} exists", where=str(folder), next_step="Name a folder without a project.")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)
