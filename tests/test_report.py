"""Verdict sentences from hand-made comparisons, the report's tables, and the model card."""

import pytest

from rl.report import answer_questions, render_evaluation, write_card

MEMORY = "Does memory help at inference?"


def comparison(kind="memory", arm="own", reference_arm="none", policy="base", reference="base", **changes):
    """Fidelity gains 0.1 to 0.3, accuracy nothing."""
    nothing = {"n": 40, "mean": 0.0, "low": -0.01, "high": 0.02, "p": 0.9, "p_holm": 0.9}
    gain = {"n": 40, "mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.001, "p_holm": 0.002}
    found = {"kind": kind, "policy": policy, "arm": arm, "reference_policy": reference, "n": 40}
    found |= {"clusters": 12}
    found |= {"reference_arm": reference_arm, "breakage": 0.1, "repair": None, "metrics": {}}
    found["metrics"] = {"correct": nothing, "fidelity": gain}
    return found | changes


def test_a_verdict_gives_its_numbers():
    (found,) = answer_questions({"base": {}}, [comparison()], {}, {})
    assert (found["question"], found["policy"], found["verdict"]) == (MEMORY, "base", "yes")
    assert "fidelity +0.200 [+0.100, +0.300], Holm p = 0.002 (yes)" in found["because"]
    assert "40 pairs from 12 clusters" in found["because"] and "breakage 10.0%, repair –" in found["because"]


@pytest.mark.parametrize("pairs", [0, 19])
def test_a_handful_of_pairs_decides_nothing(pairs):
    (found,) = answer_questions({"base": {}}, [comparison(n=pairs)], {}, {})
    assert found["verdict"] == "undecided"


def test_few_templates_decide_nothing_however_many_pairs():
    (found,) = answer_questions({"base": {}}, [comparison(clusters=9)], {}, {})
    assert (found["verdict"], found["because"]) == ("undecided", "9 clusters are too few; it takes 10.")


def test_what_was_not_run_is_undecided():
    (found,) = answer_questions({"base": {}}, [comparison(reference_arm="shuffled")], {}, {})
    assert found["verdict"] == "undecided" and "were not run" in found["because"]


def test_a_control_is_compared_as_it_was_trained():
    """Own memory against a control that is asked without; both with own memory decide nothing."""
    tables = {"base": {}, "ipo": {}, "no_memory": {}}
    trained = {"ipo": "own", "no_memory": "none"}
    both = comparison("training", "own", "own", "ipo", "no_memory")
    as_trained = comparison("training", "own", "none", "ipo", "no_memory")
    for given, verdict in ((as_trained, "yes"), (both, "undecided")):
        found = answer_questions(tables, [given], trained, {})
        (found,) = [v for v in found if v["question"] == "Does training with memory help more?"]
        assert (found["policy"], found["verdict"]) == ("ipo", verdict)
        if given is as_trained:
            assert "own memory, against no_memory, trained and asked without" in found["because"]


def test_without_a_control_the_interaction_is_told_and_decides_nothing():
    given = comparison("interaction", "own - none", "own - none", "ipo", "base")
    found = answer_questions({"base": {}, "ipo": {}}, [given], {"ipo": "own"}, {})
    (more,) = [v for v in found if v["question"] == "Does training with memory help more?"]
    assert more["verdict"] == "undecided" and "+0.200 [+0.100, +0.300]" in more["because"]


def test_memory_that_is_cut_before_what_changes_is_told_from_a_policy_that_does_not_adapt():
    progress = {"n": 8, "mean": 0.0, "low": -0.1, "high": 0.1, "by_student": {}}
    progress["versus_time_shuffled"] = {"n": 8, "mean": 0.0, "low": -0.05, "high": 0.05}
    tables = {"ipo": {"own": {"progress": progress}}}
    for share, expected in ((1.0, "undecided"), (0.5, "no")):
        adaptive = {"ipo": {"time_shuffled": {"same_prompt_share": share}}}
        found = answer_questions(tables, [], {"ipo": "own"}, adaptive)[-1]
        assert found["verdict"] == expected
        assert ("--memory_tokens" in found["because"]) == (share == 1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.9, -0.2, "yes"), (-0.3, 0.1, "undecided"), (0.1, 0.4, "no")]
)
def test_support_that_falls_as_mastery_grows_is_adaptation(low, high, verdict):
    progress = {"n": 8, "mean": -0.5, "low": -0.8, "high": -0.1}
    for students, expected in ((5, verdict), (4, "undecided")):
        progress["versus_time_shuffled"] = {"n": students, "mean": -0.1, "low": low, "high": high}
        found = answer_questions({"ipo": {"own": {"progress": progress}}}, [], {"ipo": "own"}, {})[-1]
        assert (found["question"], found["verdict"]) == ("Does it adapt as the student learns?", expected)


def test_an_arm_without_answers_is_a_row_of_dashes():
    nothing = {"n": 0, "mean": None, "low": None, "high": None}
    names = ("fidelity", "output_tokens", "support_fit", "equation_validity", "prerequisite_coverage")
    names += ("over_explaining", "semantic_similarity", "base_nll")
    table = {"n": 0, "accuracy": dict.fromkeys(("canonical", "strict", "flexible"), nothing)}
    table |= {"metrics": dict.fromkeys(names, nothing), "memory_specificity": nothing, "alarm": False}
    table |= {"profile_identification": {"n": 0, "top1": None, "mrr": None, "chance": None}}
    table |= dict.fromkeys(("correct_per_1000_tokens", "copies_memory_share", "names_student_share"))
    summary = {"policies": {"base": {"own": table}}, "comparisons": [], "adaptivity": {}, "verdicts": []}
    config = {"dataset_source": "textbook test", "moments": 0, "students_followed": 0, "questions": 0}
    config |= {"temperatures": [0.7], "num_samples": 1, "seed": 0, "policies": []}
    config["memory_level"] = "history"
    text = render_evaluation({"started": "T", "config": config, "summary": summary}, [])
    assert "| base | own | 0 | – | – | – | – | – | – (–) | – | – | – | – |" in text
    assert "level of memory: history." in text


def test_the_card_says_what_the_model_was_made_from_and_how_it_scores(tmp_path):
    folder = tmp_path / "rl_1" / "model"
    folder.mkdir(parents=True)
    config = {"model": {"name": "/models/base", "revision": "abc"}, "use_peft": True, "memory": "own"}
    config |= {"weights": {"correct": 1.0, "format": 0.1}, "dataset_source": "textbook train", "rows": 8}
    config |= {"dropped": 1, "memory_mix": [0.7, 0.15, 0.15], "eval": "4 held-out exercises", "seed": 0}
    config["memory_level"] = "history"
    names = ("learning_rate", "beta", "loss_type", "scale_rewards", "num_generations", "prompts_per_step")
    config |= dict.fromkeys((*names, "max_completion_length"), 1)
    lines = [{"step": 0, "eval/accuracy": 0.25}, {"step": 1}, {"step": 2, "eval/accuracy": 0.5}]
    write_card(folder, config, lines)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\nbase_model: /models/base\n") and "# rl_1" in card
    assert "| format | 0.1 |" in card and "| accuracy | 0.25 | 0.5 |" in card
    assert "before and after 2 steps" in card and "**Level of memory**: history." in card
