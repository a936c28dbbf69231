"""A setting that nothing reads is refused, and what is refused changes nothing."""

from dataclasses import replace

import pytest
import torch
from commands_of_all import declared, least
from conftest import must_refuse, problem_of

from disp_llm.cli.parsing import all_settings, parse
from disp_llm.config.checks import check_settings, unread, usual_settings, with_used
from disp_llm.config.errors import InputError
from disp_llm.config.learning import LearnConfig, TrainingConfig
from disp_llm.config.methods import OWN, method_names, reads_of
from disp_llm.config.parts import ScoreConfig
from disp_llm.config.prune import PruneConfig
from disp_llm.config.recipes import with_settings
from disp_llm.methods import Method, Reads, method_named, register
from disp_llm.training.problem import PruningProblem

OTHER = {
    "steps": 3, "minutes": 1.0, "length": 24, "batch": 3,
    "compile": "yes", "gradient_checkpointing": "yes", "learning_rate": 0.5, "betas": (0.5, 0.5),
    "weight_decay": 0.5, "weight_optimizer": "muon", "schedule": "constant",
    "distill": 0.1, "start": "random",
    "parametrisation": "hypernetwork", "estimator": "reinmax", "shift": 2.0,
    "temperature": 3.0, "penalty": 4.0, "scale_rate": 0.5, "adapter_rank": 3,
    "adapter_rate": 0.5, "weight_rate": 0.5, "calibration_sequences": 3,
    "calibration_length": 24,
}  # fmt: skip
"""Another value of every setting of learning and scoring."""


def with_settings_of(problem: PruningProblem, config: PruneConfig) -> PruningProblem:
    return replace(problem, job=replace(problem.job, config=config))


@pytest.mark.parametrize(
    "changes",
    [
        *({"method": method} for method in method_names() if method != "reap"),
        {"estimator": "policy_gradient", "penalty": 6.0},
        {"estimator": "reinmax", "penalty": 6.0},
        {"adapter_rank": 0},
        {"start": "random"},
    ],
)
def test_what_is_refused_changes_nothing(changes, text_file, tmp_path):
    """All settings that nothing reads, changed at once."""
    problem = problem_of("llama", text_file.read_text(), tmp_path / "a", heads=True)
    config = replace(
        problem.job.config,
        learn=LearnConfig(steps=2),
        training=TrainingConfig(length=16, batch=1, compile="no"),
        scores=ScoreConfig(2, 16),
    )
    config = with_settings(config, changes)
    names = sorted(unread(config) & OTHER.keys())
    assert names
    changed = config
    for name in names:
        changed = with_settings(changed, {name: OTHER[name]})
        with pytest.raises(InputError) as refused:
            check_settings(with_settings(with_used(config), {name: OTHER[name]}))
        assert refused.value.field == name
    choose = method_named(config.method).choose
    before, after = (choose(with_settings_of(problem, one)) for one in (config, changed))
    assert torch.equal(before.importance, after.importance)
    scales = (before.compensation.scales, after.compensation.scales)
    assert scales == (None, None) or torch.equal(*scales)
    assert with_used(changed) == with_used(config)


def test_what_is_known_of_ours_is_what_they_say():
    assert {name: method_named(name).reads for name in OWN} == OWN
    for method in map(method_named, method_names()):
        assert reads_of(method.name) == method.reads
        assert method.reads.gradients or not method.reads.steps


@pytest.mark.parametrize("command", all_settings())
def test_what_nothing_reads_is_a_setting_and_the_least_reads_all_of_its_own(command):
    config = parse(least(command))
    known = {name for of, name, _ in declared() if of == command}
    assert unread(config) <= known
    assert with_used(config) == config


@pytest.mark.parametrize("recipe", ["paper", "domain", "paper-released-code"])
def test_what_a_recipe_says_is_not_asked_for(recipe):
    config = parse(["prune", "m", "--recipe", recipe])
    assert replace(usual_settings(config), recipe=recipe) == config
    parse(["prune", "m", "--recipe", recipe, "--method", "magnitude"])


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ("prune m --method magnitude --learning-rate 1", "learning_rate"),
        ("prune m --method random --adapter-rank 8", "adapter_rank"),
        ("prune m --method flap --minutes 3", "minutes"),
        ("prune m --method random --calibration-length 64", "calibration_length"),
        ("prune m --method fisher --start random", "start"),
        ("prune m --shift 3", "shift"),
        ("prune m --estimator reinmax --penalty 6 --chunk 2", "chunk"),
        ("prune m --estimator reinmax --penalty 6 --sites experts", "sites"),
        ("prune m --steps 5 --minutes 3", "steps"),
        ("prune m --keep 0.6 --budget memory --fit 6GB", "keep"),
        ("prune m --keep 0.5 --fit 100MB", "keep"),  # the default, by name
        ("prune m --adapter-rank 0 --adapter-rate 0.002", "adapter_rate"),
        ("prune m --text a --dataset b", "dataset"),
        ("prune m --eval-dataset a --eval-examples b", "eval_examples"),
        ("eval m --examples a --text b", "examples"),
        ("prune m --estimator policy_gradient --penalty 6 --weight-rate 1e-4", "weight_rate"),
        ("prune m --adapter-rank 0 --adapter-rate 1", "adapter_rate"),
        ("prune m --text speeches --self-tokens 3", "self_tokens"),
        ("prune m --workload decode", "workload"),
        ("recover f --distill 0 --text a.txt --teacher m", "teacher"),
        ("compare m --frontier --rounds 0", "frontier"),
        ("compare m --fit 0.5 --methods flap", "fit"),
        ("eval m --shots 3", "shots"),
        ("recover f --shard full --weight-optimizer muon", "weight_optimizer"),
        ("recover f --shard full --weights-from g", "weights_from"),
        ("recover f --shard full --bits int8", "bits"),
        ("eval m --suite general --windows 3", "windows"),
        ("eval m --against m", "against"),
        ("convert f --to int8 --output-dir new --text a.txt", "text"),
        ("export run --keep 0.5 --workload-length 64", "workload_length"),
    ],
)
def test_what_is_given_without_effect_is_one_line(arguments, setting):
    with pytest.raises(InputError) as refused:
        parse(arguments.split())
    assert refused.value.field == setting
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("no_registered_methods")
def test_a_method_of_another_package_reads_what_it_says():
    register(Method("theirs", "Theirs", "nowhere", print, Reads(learning=True)))
    config = replace(PruneConfig("m", method="theirs"), learn=LearnConfig(temperature=3.0))
    check_settings(config)
    with pytest.raises(InputError, match="steps: is of learning, and the method theirs takes no"):
        check_settings(with_settings(config, {"steps": 3}))


@pytest.mark.parametrize("setting", ["tasks", "text-field", "dataset", "suite", "device"])
def test_an_empty_word_is_refused_at_once(setting):
    for given in ([f"--{setting}", ""], [f"--{setting}="], [f"--{setting}", " "]):
        with pytest.raises(InputError, match=f"--{setting}: an empty word"):
            parse(["eval", "m", *given])


def test_a_text_that_is_learned_and_measured_is_warned_of(text_file, caplog):
    parse(["prune", "m", "--text", str(text_file), "--eval-text", str(text_file)])
    (warned,) = caplog.messages
    assert "`eval_text`" in warned
    assert text_file.name in warned


def test_the_line_says_what_would_read_it():
    done = must_refuse("prune", "m", "--method", "magnitude", "--learning-rate", 1)
    assert done.stderr == (
        "disp-llm: --learning-rate: is of the method learned, and the method magnitude does not "
        "read it; leave it out, or leave --method out\n"
    )
