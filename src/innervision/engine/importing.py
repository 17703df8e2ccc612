"""Makes a run of a probe checkpoint of the original code.

innervision import shi-labs/probe_depth_llava-1.5-pt-ift --out runs/depth
"""

from pathlib import Path
from typing import Any

from innervision.checkpoints.loading import check_files, loading
from innervision.engine.environment import package_versions
from innervision.engine.run import RunFolder
from innervision.errors import require
from innervision.files import locked
from innervision.original.import_probes import read_probes


def import_run(checkpoint: str, out: str | Path, **options: Any) -> RunFolder:
    """Write a run that holds the probes of a checkpoint.

    Args:
        checkpoint: a folder or a Hub id, in the layout that the original code saves.
        out: the run's folder, which must be empty or not exist yet.
        options: see `innervision.original.import_probes.read_probes`.

    Raises:
        InnerVisionError: the folder holds something, or the checkpoint cannot be imported.
    """
    run = RunFolder(out)
    with locked(run.lock):
        run.remove_half_written()
        require(not run.holds_something(), f"{run.path} holds something already; use another --out")
        return _import(checkpoint, run, options)


def _import(checkpoint: str, run: RunFolder, options: dict[str, Any]) -> RunFolder:
    check_files(checkpoint)
    with loading("probe checkpoint", checkpoint):
        found = read_probes(checkpoint, **options)
    found.settings.out = str(run.path)
    record = {**found.record, "setup": {"versions": package_versions()}}
    run.write_settings(found.settings, record)
    facts = {
        "prompt": found.settings.prompt,
        "tokens": "all",
        "protocol": "paper",
        "imported": found.record["imported"]["checkpoint"],
    }
    found.bank.save(run.probes(found.bank.info.target), facts)
    return run
