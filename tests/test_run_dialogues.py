"""The study on MathDial: a whole small run with its files, and what it refuses."""

import pytest
from conftest import only, read_strictly, run_here
from test_docs import read, undocumented
from test_mathdial import DIALOGUE, write

from cot.run_dialogues import main
from cot.utils.files import read_answers


@pytest.mark.slow
def test_dialogues_are_asked_measured_and_exported(tiny_long, tmp_path):
    other = DIALOGUE | {"qid": 5000007, "question": "Tom has 2 pens and buys 2. How many now?"}
    dataset = write(tmp_path / "test.jsonl", DIALOGUE, other, DIALOGUE)
    flags = ["--model_name", tiny_long, "--device", "cpu"]
    flags += ["--dataset", dataset, "--cot_prompt", "Solve.", "--max_new_tokens", 4]
    flags += ["--output_dir", tmp_path / "out"]
    folder = tmp_path / "out"
    (folder / "dialogues.md").mkdir(parents=True)  # no file can be written there: all else is made
    with pytest.raises(IsADirectoryError):
        run_here(main, *flags)
    (folder / "dialogues.md").rmdir()
    code, out, stderr = run_here(main, *flags)
    assert code == 0 and ": 0 of 12 rows left" in out, stderr
    assert out.splitlines()[-1] == str(only(folder, "summary_*.json"))

    document = read_strictly(only(folder, "results_temp_0.0_*.json"))
    assert document["config"]["dialogues"] == 3 and len(document["results"]) == 3 * 4
    own = [record for record in document["results"] if record["memory_arm"] == "own"]
    assert all("She had 12 - 3 = 9 spoons." in record["prompt"] for record in own)
    assert [record["gsm8k_split"] for record in own] == ["test", "test", "train"]
    assert all(-1 <= record["teacher_similarity"] <= 1 for record in own if record["generated_text"].strip())
    assert "## GSM8K test questions" in (folder / "dialogues.md").read_text()

    exported = read_strictly(folder / "generations-tiny_llama-mathdial_own.json")
    assert [item["generated_teacher_utterance"] for item in exported] == [r["generated_text"] for r in own]
    answers = read_answers(folder / "answers.jsonl.gz")
    assert len(answers) == 12 and not any("spoons" in str(answer) for answer in answers)  # no data in it
    document["config"]["models"] = list(document["config"]["models"].values())  # its keys are names of models
    for found in (document, answers, exported):
        assert undocumented(found, read("cot")) == []


def test_another_data_set_is_refused():
    code, _, stderr = run_here(main, "--dataset", "gsm8k", "--model_name", "tutor")
    assert code == 2
    assert stderr == "error: --dataset gsm8k: expected mathdial:FILE, such as mathdial:test.jsonl\n"
