"""The sentences of a page, on runs whose scores are known."""

from pathlib import Path

import pytest
import yaml

from innervision.report.page.findings import Finding, cautions, findings, headline, in_short, tell
from innervision.report.page.study import Gain, Study, read_study
from page_runs import IMAGES, LAYERS, write_run


def of(found: list[Finding], key: str) -> Finding:
    return next(finding for finding in found if finding.key == key)


def test_a_run_above_its_floor_is_told_with_interval_floor_ceiling_and_n(tmp_path: Path) -> None:
    levels = {-1: 0.5, 0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.7}
    study = read_study([write_run(tmp_path / "a", levels)])
    finding = of(findings(study), "accuracy")
    [standing] = finding.standings
    assert standing.verdict == "beats every floor"
    assert (standing.clear, standing.layers) == (6, 6)
    text = tell(finding, standing)
    assert "world/tuned: accuracy 0.700 [0." in text
    assert "on average over the decoder layers. n = 12 images. Best at layer 3: 0.800." in text
    assert "Floor 0.300: the mean feature. Ceiling 0.950. 6 of 6 layers beat every floor." in text
    assert headline(study).startswith("Ridge probes read the layers of world/tuned and predict what ")
    [(target, text)] = in_short(study, findings(study))
    assert target == "depth"
    assert text.startswith("world/tuned has accuracy 0.700 [0.")
    assert text.endswith("(floor 0.300, ceiling 0.950, n = 12 images). world/tuned beats every floor.")


def test_a_floor_is_beaten_by_the_paired_difference_and_not_by_intervals_that_lie_apart(tmp_path: Path) -> None:
    """Scores vary by 0.2 between images, and lie 0.02 above the floor in every one of them."""
    study = read_study([write_run(tmp_path / "a", dict.fromkeys(LAYERS, 0.52), floor=0.5)])
    standing = of(findings(study), "centred_cosine").standings[0]
    assert standing.score.low < 0.5
    assert standing.verdict == "beats every floor"
    study = read_study([write_run(tmp_path / "b", dict.fromkeys(LAYERS, 0.52), floor=0.5, wobble=0.1)])
    standing = of(findings(study), "centred_cosine").standings[0]
    assert standing.below == ["mean"]
    assert standing.verdict == "does not beat every floor"
    assert any("does not beat the mean feature" in text for text in cautions(study, findings(study)))


def test_layers_that_do_not_beat_a_floor_are_counted(tmp_path: Path) -> None:
    levels = {-1: 0.2, 0: 0.2, 1: 0.6, 2: 0.6, 3: 0.6, 4: 0.6}
    study = read_study([write_run(tmp_path / "a", levels)])
    assert any(
        "2 of 6 layers of world/tuned do not beat every floor" in text for text in cautions(study, findings(study))
    )


def test_differences_are_of_the_first_run_and_say_who_is_better_or_that_it_is_not_known(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", dict.fromkeys(LAYERS, 0.6)),
        write_run(tmp_path / "c"),
    ]
    found = of(findings(read_study(runs, ["one", "two", "three"])), "centred_cosine")
    assert found.differences == [
        "one less two: +0.100 [+0.100, +0.100], one is better",
        "one less three: 0.000 [0.000, 0.000], the two cannot be told apart",
    ]
    found = of(findings(read_study(runs[1::-1], ["two", "one"])), "centred_cosine")
    assert found.differences == ["two less one: -0.100 [-0.100, -0.100], two is worse"]


def test_in_short_it_is_told_which_runs_beat_their_floors_and_how_the_first_compares(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", dict.fromkeys(LAYERS, 0.6)),
        write_run(tmp_path / "c"),
        write_run(tmp_path / "d", dict.fromkeys(LAYERS, 0.9)),
        write_run(tmp_path / "e", dict.fromkeys(LAYERS, 0.3), floor=0.5),
    ]

    def short(*numbers: int) -> str:
        study = read_study([runs[number] for number in numbers], [str(number) for number in numbers])
        return dict(in_short(study, findings(study)))["depth"].partition("images). ")[2]

    assert short(0, 1, 2) == "All runs beat every floor. 0 is better than 1 and cannot be told apart from 2."
    assert short(0, 3) == "All runs beat every floor. 0 is worse than 3."
    assert short(4) == "4 does not beat every floor."
    assert (
        short(0, 3, 4)
        == "0 and 3 beat every floor. 4 does not beat every floor. 0 is better than 4 and is worse than 3."
    )


def test_in_short_too_few_images_are_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, names=["a.jpg", "b.jpg"]) for name in "ab"]
    study = read_study(runs, ["one", "two"])
    assert in_short(study, findings(study))[0][1].endswith(
        "It is not known whether one and two beat every floor. one cannot be compared, over so few images, with two."
    )


@pytest.mark.parametrize(
    ("count", "words"), [(3, "too few for intervals"), (12, "are few: intervals are wide"), (120, None)]
)
def test_few_images_are_told(tmp_path: Path, count: int, words: str | None) -> None:
    names = [f"{number}.jpg" for number in range(count)]
    study = read_study([write_run(tmp_path / "a", names=names)])
    told = [text for text in cautions(study, findings(study)) if f"{count} images" in text]
    assert all(words and words in text for text in told)
    assert bool(told) == (words is not None)
    verdict = findings(study)[0].standings[0].verdict
    assert verdict == ("no verdict: too few images" if count < 5 else "beats every floor")


def test_a_last_doubling_of_the_images_that_still_gains_is_told_and_one_that_does_not_is_not(tmp_path: Path) -> None:
    study = read_study([write_run(tmp_path / "a")])
    study.runs[0].gains = {"depth": Gain(3, 0.034, 400, 800, 5, 6)}
    told = [text for text in cautions(study, findings(study)) if "more training images" in text]
    assert told == [
        "depth: more training images would help. The last doubling of them raised the explained variance of those held "
        "out: world/tuned +0.034 at layer 3 from 400 to 800 images (5 of 6 layers rose by more than 0.01)."
    ]
    study.runs[0].gains = {"depth": Gain(3, 0.009, 400, 800, 0, 6)}
    assert not any("more training images" in text for text in cautions(study, findings(study)))


def rewrite(run: Path, **changes: object) -> Study:
    content = yaml.safe_load((run / "run.yaml").read_text())
    content["settings"].update(changes)
    (run / "run.yaml").write_text(yaml.safe_dump(content))
    return read_study([run])


def test_what_else_speaks_against_a_finding(tmp_path: Path) -> None:
    plan = {"probes": {"depth": "sha256:probes"}, "files": "sha256:train"}
    run = write_run(tmp_path / "a", plan=plan, bad_images={"x.jpg": "broken"})
    study = rewrite(run, probe={"kind": "resampler"})
    told = "\n".join(cautions(study, findings(study)))
    assert "depth: world/tuned was scored on the images that its probes were trained on." in told
    assert "depth: 1 image was left out of the scores of world/tuned (x.jpg)." in told
    assert "The probes of world/tuned (resampler) are trained" in told
    assert "None of these runs was made with --random-weights" in told
    study = rewrite(run, random_weights="llm", probe={"kind": "ridge"})
    told = "\n".join(cautions(study, findings(study)))
    assert "--random-weights" not in told
    assert "are trained" not in told


def test_runs_without_common_images_are_named_and_not_compared(tmp_path: Path) -> None:
    other = [f"other/{name}" for name in IMAGES]
    study = read_study([write_run(tmp_path / "a"), write_run(tmp_path / "b", names=other)], ["one", "two"])
    assert all(not finding.differences for finding in findings(study))
    assert any("one and two are not compared: " in text for text in cautions(study, findings(study)))
