"""Options without effect are refused where they are given, and nowhere else."""

import ast
import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.commands.run import parse_run
from devft_jax.comparing.arms import parse_arm
from devft_jax.comparing.budgets import configure
from devft_jax.config.effects import DECLARED, check_arms_effects, check_effects
from devft_jax.config.files import read_config, to_plain
from devft_jax.config.methods import METHODS, readers, record_of
from devft_jax.config.presets import PRESETS, preset
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.developmental import GROWTHS
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.options import identity_fields
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.opening import open_run

# Options that every run reads. A new option belongs here, or its declaration says what it has an effect under.
ALWAYS = {
    *("model", "seed", "data", "test_data", "test_fraction", "template", "max_length", "overlong", "partition"),
    *("data_limit", "quantization", "growth", "stage_rounds", "algorithm", "clients_per_round", "local_steps", "batch_size"),
    *("learning_rate", "rate_warmup_rounds", "optimizer", "clip_norm", "dtype"),
}


def test_it_is_known_of_every_option_when_it_has_an_effect():
    records = [record_of(kind, name) for kind, known in METHODS.items() for name in known]
    ignored = {name for record in records for name in record.ignores}
    conditional = {name for name, declared in DECLARED.items() if declared.keys() & {"of", "when", "beside", "needs"}}
    assert set(identity_fields(RunConfig())) - conditional - ignored == ALWAYS


def test_every_option_of_single_methods_is_read_by_one_and_records_name_options_that_there_are():
    single = {name: declared["of"] for name, declared in DECLARED.items() if "of" in declared}
    assert all(readers(kind, name) for name, kind in single.items())
    for kind, known in METHODS.items():
        for method in known:
            record = record_of(kind, method)
            assert all(single[name] == kind for name in record.reads), method
            assert all(name in DECLARED and name not in single for name in record.ignores), method
            assert bool(record.ignores) == bool(record.because)


def attributes_of_config(module):
    """The options that the functions of a module read from their `config` or `options`."""
    tree = ast.parse(Path(module.__file__).read_text())
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("config", "options")
    }


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_reads_what_its_record_says(name):
    module = importlib.import_module(ALGORITHMS[name].module)
    used = attributes_of_config(module) & DECLARED.keys()
    # Several algorithms of one file read what they need of the file's options.
    records = [record_of("algorithm", each) for each in ALGORITHMS if ALGORITHMS[each].module == module.__name__]
    reads = {option for record in records for option in record.reads}
    assert {option for option in used if DECLARED[option].get("of") == "algorithm"} == reads
    assert not used & set(record_of("algorithm", name).ignores)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("algorithm", ["fedit", "c2a", "central"])
def test_a_presets_options_are_nobodys_choice(name, growth, algorithm):
    config = parse_run(["--preset", name, "--growth", growth, "--algorithm", algorithm])
    check_effects(config)
    check_effects(dataclasses.replace(preset(name), growth=growth, algorithm=algorithm))
    assert config.capacities == preset(name).capacities


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--prox-mu 0.5", "prox_mu 0.5 is read by fedprox only and the algorithm is fedit; leave it out or use --algorithm"),
        ("--growth end-to-end --capacities 4,8", "capacities 4,8 is read by devft, skip-grow and top-grow only and"),
        ("--client-ranks 4,2", "client_ranks 4,2 is read by flora, hetlora and flexlora only and the algorithm is fedit"),
        ("--dirichlet-alpha 0.01", "dirichlet_alpha 0.01 is read by dirichlet, topic, length and quantity only"),
        ("--stage-rounds 1,1 --rounds 4", "rounds 4 disagrees, as stage_rounds names 2 stages of 1,1 rounds, 2 in all;"),
        ("--growth progfed --capacities 4,8", "capacities 4,8 is read by"),
        ("--stages 3 --capacities 4,8", "stages 3 has no effect beside capacities; leave it out or leave capacities out"),
        ("--capacities 4,8 --capacity-schedule linear", "capacity_schedule linear has no effect beside capacities"),
        ("--growth progfed --beta 0.2", "beta 0.2 is read by devft only and the growth is progfed"),
        ("--fusion mean --beta 0.2", "beta 0.2 is read by dblf only and the fusion is mean"),
        ("--warmup-rounds 2", "warmup_rounds 2 is read by progfed only"),
        ("--plateau-rounds 3", "plateau_rounds 3 is read by plateau only and the stage end is fixed"),
        ("--stage-end plateau --gain-every 2", "gain_every 2 is read by gain only and the stage end is plateau"),
        ("--min-stage-rounds 2", "min_stage_rounds 2 is read by plateau and gain only and the stage end is fixed"),
        ("--growth end-to-end --stage-end gain", "stage_end gain has no effect with the growth end-to-end"),
        ("--growth end-to-end --stage-end plateau", "stage_end plateau has no effect with the growth end-to-end"),
        ("--probe-examples 8", "probe_examples 8 has no effect with a similarity of weights; leave it out or use"),
        ("--growth progfed --probe-examples 8", "probe_examples 8 is read by devft, fed-hello, fed-pilot, fedpruner and"),
        ("--grouping even_blocks --similarity cka", "similarity cka is read by dglg and contiguous only"),
        ("--fusion anchor --gain-matching", "gain_matching True is read by dblf, sum and mean only"),
        ("--fusion anchor --distil-steps 5", "distil_steps 5 is read by dblf, sum and mean only and the fusion is anchor"),
        ("--growth skip-grow --distil-steps 5", "distil_steps 5 is read by devft only and the growth is skip-grow"),
        ("--distil-rate 1e-2", "distil_rate 0.01 has no effect without distillation; leave it out or give --distil-steps"),
        ("--partition field --clients 5", "clients 5 has no effect with the partition field, which sets the number"),
        ("--min-examples 3", "min_examples 3 is read only by field and file splits and the partition is iid"),
        ("--partition dirichlet --partition-groups 4", "partition_groups 4 is read by topic and length only"),
        ("--category-field kind", "category_field kind has no effect on built-in data"),
        ("--test-limit 5", "test_limit 5 has no effect without held-out data; leave it out or give --test-data or"),
        ("--evaluate-every 2", "evaluate_every 2 has no effect without held-out data"),
        ("--evaluate-tasks-every 2", "evaluate_tasks_every 2 has no effect without tasks"),
        ("--test-fraction 0.1 --evaluate-full", "evaluate_full True has no effect without evaluations"),
        ("--quantization nf4 --growth top-grow --fuse-from original", "fuse_from original is read by devft, progfed and"),
        ("--rslora", "rslora True has no effect with alpha auto, which gives the scale 2 at any rank; leave it out or give"),
        ("--algorithm ffa-lora --lora-plus-ratio 16", "lora_plus_ratio 16.0 has no effect with the algorithm ffa-lora"),
        ("--algorithm flora --initialization pissa", "initialization pissa needs an algorithm whose clients all start from"),
        ("--initialization pissa --message-dtype bfloat16", "message_dtype bfloat16 would round the principal directions"),
        ("--initialization lora-ga --message-dtype float16", "message_dtype float16 would round the gradient's directions"),
        ("--algorithm c2a --initialization lora-ga", "initialization lora-ga has no effect with the algorithm c2a"),
        ("--algorithm c2a --rank 8", "rank 8 has no effect with the algorithm c2a, which generates adapters by"),
        ("--algorithm central --message-dtype bfloat16", "message_dtype bfloat16 has no effect with the algorithm central"),
        ("--algorithm local-only --weighting uniform", "weighting uniform has no effect with the algorithm local-only"),
        ("--algorithm dofit --domain-rule mean --domain-step 2", "domain_step 2.0 is read by dofit only and the"),
        ("--schedule constant --min-learning-rate 1e-5", "min_learning_rate 1e-05 has no effect with the schedule constant"),
        ("--min-learning-rate 1e-3", "min_learning_rate 0.001 has no effect where no learning_rate is above"),
        ("--learning-rate 1e-7 --schedule cosine-per-stage", "schedule cosine-per-stage has no effect where no"),
        ("--optimizer sgd --weight-decay 0.1", "weight_decay 0.1 is read by adamw only and the optimizer is sgd"),
        ("--optimizer sgd --beta1 0.5", "beta1 0.5 is read by adamw only"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused_with_its_owner(flags, sentence, capsys, tmp_path):
    assert run_command(["run", *flags.split(), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"devft: {sentence}")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert run_command(["plan", *flags.split()]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--algorithm fedprox --prox-mu 0.5",
        "--stage-rounds 1,3 --rounds 4 --capacities 4,8",
        "--growth progfed --stages 3 --warmup-rounds 1",
        "--capacities 4,8 --stages None",
        "--growth end-to-end --devices 1 --prefix-cache on --evaluation-batch 4",
        "--algorithm hetlora --client-ranks 4,2 --rank-penalty 0",
        "--partition length --partition-groups 4 --dirichlet-alpha 0.1",
        "--similarity influence --probe-examples 4 --laplacian normalised --lone-ends --gain-matching",
        "--distil-steps 5 --distil-rate 1e-2 --probe-examples 4",
        # A default that is said once more is nobody's mistake.
        "--growth end-to-end --prox-mu 0.01 --beta 0.1",
    ],
)
def test_options_with_an_effect_are_taken(flags):
    config = parse_run(flags.split())
    validate(config)
    check_effects(config)


def test_all_that_has_no_effect_is_named_at_once(capsys):
    flags = "--growth end-to-end --prox-mu 0.5 --capacities 4,8 --dirichlet-alpha 0.01 --client-ranks 4,2"
    assert run_command(["run", *flags.split()]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "or quantity (capacities 4,8, prox_mu 0.5 and client_ranks 4,2 have no effect either).\n",
    )
    assert run_command(["run", "--prox-mu", "0.5", "--rotation", "0.1"]) == 2
    assert capsys.readouterr().err.endswith("use --algorithm fedprox (rotation 0.1 has no effect either).\n")


def test_files_of_clients_give_their_own_number(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"instruction": "x", "output": "y"}\n')
    data = ["--data", str(tmp_path)]
    check_effects(parse_run([*data, "--min-examples", "1"]))
    check_effects(parse_run([*data, "--partition", "iid", "--clients", "2"]))
    with pytest.raises(InputError, match="clients 5 has no effect with the partition file"):
        check_effects(parse_run([*data, "--clients", "5"]))
    # Data that is not there is reported elsewhere.
    check_effects(parse_run(["--data", str(tmp_path / "none.json"), "--clients", "5"]))


def test_a_files_options_are_given_but_not_those_of_a_runs_record(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("growth: end-to-end\ncapacities: [4, 8]\n")
    for config in (read_config(path), parse_run(["--config", str(path)])):
        with pytest.raises(InputError, match="capacities 4,8 is read by"):
            check_effects(config)
    path.write_text(json.dumps(to_plain(RunConfig(growth="end-to-end", capacities=(4, 8), prox_mu=0.5))))
    check_effects(parse_run(["--config", str(path)]))
    with pytest.raises(InputError, match=r"rotation 0\.1 is read by fedrot-lora only"):
        check_effects(parse_run(["--config", str(path), "--rotation", "0.1"]))


def test_in_python_what_a_configuration_was_made_with_is_given():
    config = RunConfig(growth="end-to-end", prox_mu=0.5)
    assert config.given == {"growth", "prox_mu"}
    with pytest.raises(InputError, match=r"prox_mu 0\.5 is read by fedprox only"):
        check_effects(config)
    # Derived from another run's: its options were not meant for this one.
    check_effects(dataclasses.replace(RunConfig(capacities=(4, 8)), growth="end-to-end"))
    # Nothing is known of an algorithm that was given as an object.
    check_effects(config, objects=["algorithm"])


def arms_of(common, *texts):
    arms = configure([parse_arm(text) for text in texts], common)
    check_arms_effects(common, {each.arm.name: (each.config, each.arm.overrides) for each in arms})


def test_arms_read_their_own_options_and_one_of_them_every_common_one():
    common = RunConfig(prox_mu=0.5, capacities=(4, 16), rounds=8)
    arms_of(common, "fedit", "fedprox+devft")
    arms_of(common, "fedprox", "fedit+devft:beta=0.2")
    with pytest.raises(
        InputError, match=r"^no arm reads prox_mu 0\.5: in 'fedit' it is read by fedprox only and the algorithm"
    ):
        arms_of(common, "fedit", "fedit+devft")
    with pytest.raises(InputError, match=r"^the arm 'fedprox:beta=0\.2' sets beta 0\.2, which is read by devft only"):
        arms_of(common, "fedprox:beta=0.2", "fedit+devft")
    arms_of(common, "fedprox:capacities=none", "fedit+devft")


def test_a_run_that_was_started_with_an_option_without_effect_goes_on_without_it(tmp_path):
    before = dataclasses.replace(RunConfig(), prox_mu=0.5, rank=8, alpha=64.0)
    with RunFolder(tmp_path) as folder:
        folder.write_json("config.json", to_plain(before))
        assert open_run(RunConfig(rank=8, alpha=64.0), folder, {}) is None
        with pytest.raises(InputError, match=r"its alpha is 64\.0, not 16\.0"):
            open_run(RunConfig(rank=8), folder, {})
        with pytest.raises(InputError, match="holds another run"):
            open_run(RunConfig(rank=8, alpha=64.0, algorithm="fedprox"), folder, {})
