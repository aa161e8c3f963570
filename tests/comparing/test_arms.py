"""Arms: how they are read, and what is refused."""

import pytest

from devft_jax.comparing.arms import Arm, parse_arm, read_arms
from devft_jax.comparing.budgets import configure
from devft_jax.config.presets import preset
from devft_jax.errors import InputError

DEMO = preset("demo")


def configured(*texts, common=DEMO):
    return {each.arm.name: each for each in configure([parse_arm(text) for text in texts], common)}


def test_an_arm_is_read_from_its_text():
    assert parse_arm("fedit") == Arm("fedit", "fedit")
    found = parse_arm("fedit+devft:beta=0.2:learning-rate=3e-3:capacities=4/16:fusion=sum@flops=central:rank=4")
    assert (found.algorithm, found.growth) == ("fedit", "devft")
    assert found.overrides == {"beta": 0.2, "learning_rate": (3e-3,), "capacities": (4, 16), "fusion": "sum"}
    assert (found.control, found.target) == ("flops", "central:rank=4")


def test_overrides_become_the_values_of_options():
    text = "fedit+devft:beta=auto:learning_rate=3e-3:capacities=4/16:stage_rounds=4/12:dropout=0.1:targets=q/k"
    config = configured(text)[text].config
    assert (config.beta, config.learning_rate, config.capacities) == ("auto", (0.003,), (4, 16))
    assert (config.stage_rounds, config.dropout, config.targets) == ((4, 12), 0.1, ("q", "k"))
    assert configured("fedit+devft:capacities=none")["fedit+devft:capacities=none"].config.capacities is None


def test_a_file_gives_arms_titles(tmp_path):
    path = tmp_path / "arms.yaml"
    path.write_text(
        "FedIT: {algorithm: fedit}\n"
        "DevFT, firmly: {algorithm: fedit, growth: devft, beta: 0.2, learning_rate: 1e-3}\n"
        "alone: local-only\n"
        "FedIT at its bytes: {algorithm: fedit, bytes_of: 'DevFT, firmly'}\n"
    )
    arms = {arm.name: arm for arm in read_arms(path)}
    assert list(arms) == ["FedIT", "DevFT, firmly", "alone", "FedIT at its bytes"]
    assert arms["DevFT, firmly"].growth == "devft"
    assert arms["alone"].algorithm == "local-only"
    found = {each.arm.name: each.config for each in configure(list(arms.values()), DEMO)}
    assert (found["DevFT, firmly"].beta, found["DevFT, firmly"].learning_rate) == (0.2, (0.001,))
    assert found["FedIT at its bytes"].rank < DEMO.rank


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["fedti"], "names the algorithm 'fedti', which does not exist; did you mean 'fedit'"),
        (["fedit+grow"], "names the growth 'grow', which does not exist; did you mean 'top-grow'"),
        (["fedit+sprout"], "names the growth 'sprout', which does not exist; .* or name one of your own as package"),
        (["fedit:beta"], "has the option 'beta'; write it as option=value"),
        (["fedit:rang=3"], "the arm 'fedit:rang=3' cannot be run: the option 'rang' does not exist; did you mean 'rank'"),
        (["fedit:rank=0"], "the arm 'fedit:rank=0' cannot be run: rank 0 is not positive"),
        (["fedit:rank=many"], "the arm 'fedit:rank=many' cannot be run: rank 'many' is not a whole number"),
        (["fedit:clients=3"], "sets clients, which all arms share so that they can be compared; give it .* as --clients"),
        (["fedit:rounds=3"], "sets rounds, which all arms share"),
        (["fedit:seed=3"], "sets seed, which all arms share"),
        (["fedit@flop=central"], "ends in '@flop=central'; write @bytes=ARM or @flops=ARM"),
        (["fedit@bytes"], "write @bytes=ARM"),
        (["fedit", "fedit"], "the arm 'fedit' is given twice"),
        ([], "no arms are given"),
        (
            ["fedit@bytes=fedit+devft"],
            "refers to the bytes of 'fedit\\+devft', which is not an arm .* choose from \\(none\\)",
        ),
        (["fedit@flops=local", "local-only"], "which is not an arm with its own length here; choose from local-only"),
        (["fedit@bytes=local-only", "local-only"], "'local-only' sends nothing, so there is no rank with as many bytes"),
        (["local-only@bytes=fedit", "fedit"], "what local-only sends does not depend on rank"),
        (["fedit+devft:capacities=4/99"], "the arm 'fedit\\+devft:capacities=4/99' cannot be run: .*99"),
        (["fedit+devft:learning_rate=1/2/3"], "cannot be run: learning_rate has 3 rates for 4 stages"),
        (["fedit+devft:stage_rounds=1/2/3/4"], "its stage_rounds .* are 10 rounds and all arms have 16"),
    ],
)
def test_arms_that_cannot_be_are_refused_in_one_sentence(texts, words):
    with pytest.raises(InputError, match=words):
        configured(*texts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[fedit]", "must hold arms by title"),
        ("a: {growth: devft}", "the arm 'a' must name its algorithm"),
        ("a: {algorithm: fedit, bytes_of: b, flops_of: b}", "has bytes_of and flops_of; give one"),
        ("a: [", "is not valid YAML or JSON"),
        (None, "cannot be read"),
    ],
)
def test_bad_arms_files_are_refused(tmp_path, text, words):
    path = tmp_path / "arms.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_arms(path)
