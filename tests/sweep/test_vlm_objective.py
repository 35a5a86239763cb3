"""Sweeps that a vision-language model judges: `vlm/kl` as an objective, of trials, confirmations and baselines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.llavas import make_llava, make_processor
from support.one_ray import one_ray
from support.stores import write_store
from support.sweeping import events, spec
from support.trials import TOKEN_GRID, figures, trial

import tokconv
from tokconv.errors import ConfigError, SpecError, SweepError
from tokconv.evaluation.figures import VLM_AGREEMENT, VLM_KL
from tokconv.exports.answers.next_tokens import NextTokens
from tokconv.exports.answers.teacher import teacher_settings
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.checks import check_figures, check_same_experiment, figures_of
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import load_spec, parse_spec, spec_to_dict
from tokconv.sweep.spec.rules import Rules

PLAIN = {"name": "x", "trials": 1}
OBJECTIVES = [{"metric": "compression_ratio", "mode": "max"}, {"metric": VLM_KL, "mode": "min"}]


def test_a_trial_without_a_judge_imports_no_model() -> None:
    """In a process of its own, as every trial is: transformers takes three seconds of each."""
    code = "import sys, tokconv.sweep.run, tokconv.sweep.trials.trial; print('transformers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_prompts_are_a_list_or_a_file_whose_lines_the_record_keeps(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("What is this?\n\n How many? \n")
    found = parse_spec({**PLAIN, "vlm": {"model": "llava", "prompts": str(path)}})
    assert found.vlm is not None
    assert found.vlm.prompts == ("What is this?", "How many?")
    assert parse_spec(spec_to_dict(found)) == found
    written = tmp_path / "spec.yaml"
    written.write_text("name: x\ntrials: 1\n")
    overridden = load_spec(written, ["vlm.model=my: model", "vlm.images=4"])
    assert overridden.vlm is not None
    assert (overridden.vlm.model, overridden.vlm.images) == ("my: model", 4)
    for wrong, message in (
        ({"prompts": ["a"]}, "vlm.model: missing"),
        ({"model": ""}, "vlm.model: got ''"),
        ({"model": "a", "prompts": []}, "vlm.prompts: got"),
        ({"model": "a", "prompts": str(tmp_path / "none.txt")}, "none.txt cannot be read (FileNotFoundError)"),
        ({"model": "a", "images": 0}, "vlm.images: got 0; must be a whole number of at least 1"),
        ({"model": "a", "prompt": "b"}, "vlm.prompt: unknown; did you mean prompts?"),
    ):
        with pytest.raises(SpecError) as error:
            parse_spec({**PLAIN, "vlm": wrong})
        assert message in str(error.value)


def test_the_judge_teaches_unless_base_names_another_model() -> None:
    judge = {"model": "my llava", "prompts": ["What is it, exactly?", "How many?"], "tokens": 3}
    taught = {**PLAIN, "search": {"loss.weights.vlm": {"float": [0, 1]}}}
    found = parse_spec({**taught, "vlm": judge}).base_config().loss.vlm
    assert (found.model, found.prompts, found.tokens) == ("my llava", "What is it, exactly?\nHow many?", 3)
    assert teacher_settings(found).prompts == ("What is it, exactly?", "How many?")
    other = parse_spec({**taught, "vlm": judge, "base": ["loss.vlm.model=other"]}).base_config().loss.vlm
    assert (other.model, other.tokens) == ("other", 3)
    weighed = {**PLAIN, "base": ["loss.weights.vlm=1"]}
    assert parse_spec({**weighed, "vlm": judge}).base_config().loss.vlm.model == "my llava"
    with pytest.raises(SpecError, match=r"base: loss\.weights\.vlm: got 1, and no model that could teach"):
        parse_spec(weighed)
    # Without a teacher, the config of a judged trial is what it was.
    assert parse_spec({**PLAIN, "vlm": judge}).base_config().loss.vlm.model is None


def test_the_figure_needs_a_model_that_the_spec_names(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    without = parse_spec({**PLAIN, "objectives": OBJECTIVES})
    with pytest.raises(SpecError, match=r"vlm/kl: needs a frozen vision-language model, which a sweep's spec names"):
        check_figures(without, store)
    named = parse_spec({**PLAIN, "vlm": {"model": "llava"}})
    found = named.with_objectives(figures_of(named, store))
    assert [objective.metric for objective in found.objectives] == ["compression_ratio", "val/fvu", VLM_KL]
    with pytest.raises(SweepError, match="vlm: differs from the sweep to resume"):
        check_same_experiment(named, without.model_copy(update={"objectives": ()}))


def test_the_model_chooses_the_plug_in_whatever_its_fvu() -> None:
    known = {6: {"window_pca": figures(0.03, 0.4, **{VLM_KL: 0.9}), "pooling": figures(0.1, 0.1, **{VLM_KL: 0.5})}}
    trials = [trial("0", fvu=0.02, **{VLM_KL: 0.6}), trial("1", fvu=0.2, **{VLM_KL: 0.3})]
    [verdict] = judge(trials, Rules(), TOKEN_GRID, known)
    award = verdict.award("plug-in")
    assert award is not None
    assert award.champion is not None
    assert (award.champion.uid, award.criterion.figure, award.criterion.targets) == ("1", VLM_KL, ())
    [verdict] = judge(trials[:1], Rules(), TOKEN_GRID, known)
    award = verdict.award("plug-in")
    assert award is not None
    assert award.finding.startswith("pooling (VLM KL 0.5000) is at least as good as the only run (VLM KL 0.6000)")


def interrupt(*_: object) -> None:
    """Stand in for the minutes in which a model reads all tokens of a store."""
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray, MLflow and SQLAlchemy, in their own threads
@pytest.mark.timeout(600)
def test_a_sweep_is_judged_by_a_model_from_its_trials_to_its_champions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_llava(width=32).save_pretrained(tmp_path / "llava")
    make_processor().save_pretrained(tmp_path / "llava")
    vlm = {"model": str(tmp_path / "llava"), "prompts": ["what is this ?"], "images": 4, "tokens": 2}
    tree = spec(
        tmp_path,
        base=["training.epochs=2", "model.clip.image_size=null"],
        search={"loss.weights.vlm": {"float": [1, 2]}, "model.compressor.output_grid_size": {"choice": [4]}},
        objectives=OBJECTIVES,
        champions={"plug-in": {}},
        confirm={"seeds": 2},
        trials=2,
        vlm=vlm,
    )
    with monkeypatch.context() as patch:
        patch.setattr(NextTokens, "prepare", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(parse_spec(tree))
    assert "go on with: --resume" in capsys.readouterr().out
    with one_ray():
        result = run_sweep(parse_spec(tree), allow_unproven=True, resume=True)
    runs = [*result.trials.values(), *result.confirmations.values()]
    assert len(runs) >= 2
    for run in runs:
        assert [VLM_KL in row for row in run.history] == [False, False, True]
        assert run.figures[VLM_KL] > 0
        assert 0 <= run.figures[VLM_AGREEMENT] <= 1
        # It also teaches.
        assert run.history[-1]["train/vlm"] > 0
    [verdict] = result.verdicts
    assert all(row[VLM_KL] > 0 for row in verdict.baselines.values())
    award = verdict.award("plug-in")
    assert award is not None
    assert award.evidence is not None
    assert award.criterion.figure == VLM_KL
    # A winner that loses to a baseline in the search's own run is not trained again.
    assert len(runs) == 2 or VLM_KL in award.evidence.half_widths
    assert award.champion == min(verdict.trials, key=lambda one: one.figures[VLM_KL])
    assert "VLM KL" in (result.directory / "report" / "report.html").read_text()
    champion = json.loads((result.directory / "champions" / "grid-04" / "plug-in" / "config.json").read_text())
    assert VLM_KL in json.dumps(champion)
    started = next(event for event in events(result.directory) if event["event"] == "sweep_started")
    assert started["spec"]["vlm"] == vlm

    make_llava(width=32, layer=-1).save_pretrained(tmp_path / "other")
    make_processor().save_pretrained(tmp_path / "other")
    tree |= {"name": "refused", "vlm": {**vlm, "model": str(tmp_path / "other")}}
    with pytest.raises(ConfigError, match="its hidden layer is 3, that of the model's tower is 4"):
        run_sweep(parse_spec(tree))
    assert not (result.directory.parent / "refused-001").exists()
