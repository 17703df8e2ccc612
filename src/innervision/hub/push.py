"""Publishes a run on the Hub, with a card made from it."""

import tempfile
import warnings
from pathlib import Path

from innervision.checkpoints.identity import is_public
from innervision.engine.run import RunFolder, evaluation_of
from innervision.errors import InnerVisionError, require
from innervision.hub.card import make_card
from innervision.hub.fetch import FILES, TOO_DEEP, HubRun, hub_errors, require_repository
from innervision.report.figures import plot_curves
from innervision.report.files import tables_of
from innervision.targets import parse_targets
from innervision.terminal import tell

ALSO = ("scores/*.csv", "train/log.jsonl", "figures/*.pdf", "figures/*.svg", "*.html")
"""What is published beside the files that are fetched again: for people to look at."""
CARD = ("README.md", "curves.png")


def push(path: str | Path, repository: str, *, licence: str, private: bool = False) -> str:
    """Upload a run: settings, probes, scores, figures and a card, but no state of a training.

    A call that was stopped is resumed by calling again: what arrived is not sent again.

    Args:
        path: of the run's folder.
        repository: USER/REPO; made if it does not exist.
        licence: of the probes and scores, as the Hub writes it, such as apache-2.0.
        private: make the repository visible to its owner alone, if it is made.

    Returns:
        The address of the commit.

    Raises:
        InnerVisionError: the run is not trained, or the Hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import filter_repo_objects

    require_repository(repository)
    run = RunFolder(path)
    names = [file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file()]
    files = list(filter_repo_objects(names, allow_patterns=[*FILES, *ALSO], ignore_patterns=list(TOO_DEEP)))
    experts = run.record().get("experts", {})
    if lacking := [name for name in experts if not run.probes(name).exists()] or ([] if experts else ["any target"]):
        raise InnerVisionError(f"{run.path} is not trained yet: there are no probes for {', '.join(lacking)}")
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)  # links to the files, so that the run's folder stays as it is
        for name in files:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).symlink_to((run.path / name).resolve())
        scored = any(table == evaluation_of(table) for table in tables_of(run.path))
        if scored:
            plot_curves([run.path], stage / CARD[1])
        make_card(run.path, repository, licence, CARD[1] if scored else None).save(stage / CARD[0])
        size = sum(file.stat().st_size for file in stage.rglob("*") if file.is_file())
        tell(f"{len(files)} files and a card, {size / 1e6:,.1f} MB, go to {repository}")
        if photographs := sum(name.endswith(".webp") for name in files):
            tell(f"others will see {photographs} photographs that the run keeps for its report")
        for what, name in paths_of(run):
            tell(f"others will see a path of this machine: {what} = {name}")
        with hub_errors(HubRun(repository)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # scores are few
            api = HfApi()
            api.create_repo(repository, private=private or None, exist_ok=True)
            there = api.list_repo_files(repository)
            others = list(filter_repo_objects(there, ignore_patterns=[*FILES, *ALSO, *CARD, ".gitattributes"]))
            require(
                "run.yaml" in there or not others,
                f"{repository} holds something that is no run, such as {min(others, default='')}: choose another name",
            )
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=stage,
                commit_message=f"{run.path.resolve().name}, by InnerVision",
                delete_patterns=list(FILES),  # of what the run no longer has
            )
    return commit.commit_url


def paths_of(run: RunFolder) -> list[tuple[str, str]]:
    """Name the settings of a run that hold paths, which are of no use elsewhere and may tell more than is meant."""
    settings = run.settings()
    named = [("mllm", settings.mllm), ("images", settings.images)]
    named += [(spec.name, spec.expert) for spec in parse_targets(settings.targets) if spec.expert]
    return [(what, name) for what, name in named if not is_public(name)]
