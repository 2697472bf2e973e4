"""Thinking models: where a reasoning ends, and that sweeps and training read what follows it."""

import itertools
import json

import pytest
from conftest import edit_journal, make_tokenizer, only, plant_policy, read_strictly, run_here

from cot import run_baseline_cot
from cot.utils.completions import Request
from cot.utils.engine import TransformersEngine
from cot.utils.models import load_model
from cot.utils.thinking import NO_BLOCK, Reasoning, StopWatch, split_completion, split_thinking
from rl import train_rl_memory

IM = ["<|im_start|>", "<|im_end|>"]
TURN = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
MARKS = "{# </think> #}"  # as templates have it that cut the reasoning out of earlier turns
ANSWER = {"####": {"Ġ": 1.0}, "Ġ": {"5": 1.0}, "5": {"<|im_end|>": 1.0}}
STEPS = {"<|im_start|>": "<think>", "<think>": "Hmm", "Hmm": "7", "7": "</think>", "</think>": "####"}
THINKS = {"": {"8": 1.0}} | {token: {after: 1.0} for token, after in STEPS.items()} | ANSWER
SAYS_DONE = {"<|im_start|>": {"Hmm": 1.0}, "Hmm": {"7": 1.0}, "7": {"done": 1.0}, "done": {"####": 1.0}}


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """Makes a policy whose reasoning is "Hmm7" and whose answer is "#### 5"."""

    def make(template=TURN + SWITCH, after=THINKS, special=IM):
        words = {"<think>", "</think>", "Hmm", "####", "Question", "done"} - set(special)
        folder = tmp_path_factory.mktemp("policy") / "thinker"
        return plant_policy(folder, after, template, special=special, words=sorted(words))

    return make


# --- a text, taken apart ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "end", "opened", "parts"),
    [
        ("<think>a #### 3</think>\n18", "</think>", False, ("a #### 3", "18", False)),
        ("a #### 3</think>\n18", "</think>", False, ("a #### 3", "18", False)),  # the template opened it
        ("<think>a</think>b</think>c", "</think>", False, ("a</think>b", "c", False)),  # the last one ends it
        ("<think>a #### 3", "</think>", False, ("a #### 3", "", True)),
        ("<think>a</think>b<think>c 7", "</think>", False, ("<think>a</think>b<think>c 7", "", True)),
        ("18 eggs ", "</think>", False, ("", "18 eggs ", False)),
        ("[THINK]a[/THINK]18", "[/THINK]", False, ("a", "18", False)),
        ("<|channel>thought\nso 3<channel|>7", "<channel|>", False, ("so 3", "7", False)),
        (
            "<|channel|>analysis<|message|>3<|end|><|channel|>final<|message|>7",
            *("<|channel|>final<|message|>", False, ("3<|end|>", "7", False)),
        ),
        ("a<|done|>18", "<|done|>", False, ("a", "18", False)),  # a mark that begins it is not known
        # a block that the prompt opened holds all until its end
        ("so 3", "</think>", True, ("so 3", "", True)),
        ("so 3</think>7", "</think>", True, ("so 3", "7", False)),
    ],
)
def test_the_reasoning_is_split_from_the_answer(text, end, opened, parts):
    assert split_thinking(text, end, opened=opened) == parts


@pytest.mark.parametrize("special", [[], ["<think>", "</think>"]], ids=["words", "special tokens"])
def test_tokens_are_split_where_their_text_is_and_the_whole_reads_the_same_again(plant, special):
    _, tokenizer = load_model(str(plant(special=[*IM, *special])), "cpu", "float32")
    ids = tokenizer.encode("<think>Hmm7</think>\n5\nQuestion: 6?", add_special_tokens=False)
    split = split_completion(tokenizer, ids, stop=["\nQuestion:"])
    assert (split.text, split.thinking_text, split.cut_off) == ("5", "Hmm7", False)
    assert split.thinking_tokens == 4  # <think> Hmm 7 </think>
    assert split_thinking(split.whole(NO_BLOCK)) == ("Hmm7", "5", False)
    assert split.whole(Reasoning(opened=True)) == "Hmm7</think>\n5"

    cut = split_completion(tokenizer, ids[:3], stop=["Hmm"])
    assert (cut.text, cut.thinking_text, cut.thinking_tokens, cut.cut_off) == ("", "Hmm7", 3, True)
    assert split_thinking(cut.whole(NO_BLOCK)) == ("Hmm7", "", True)
    plain = split_completion(tokenizer, ids[4:], stop=["\nQuestion:"])
    assert (plain.text, plain.thinking_text, plain.whole(NO_BLOCK)) == ("\n5", None, "\n5")


@pytest.mark.parametrize(
    ("text", "opened", "stops"),
    [
        ("5\nQuestion:", False, True),
        ("<think>\nQuestion:", False, False),
        ("\nQuestion:", True, False),
        ("\nQuestion:</think>5", True, False),
        ("<think></think>\nQuestion:", False, True),
        ("\n<think></think>Question:", False, False),  # what stands before a mark stops nothing behind it
    ],
)
def test_a_stop_text_counts_outside_the_reasoning_alone(text, opened, stops):
    tokenizer = make_tokenizer()
    watch = StopWatch(tokenizer, ["\nQuestion:"], Reasoning(opened=opened))
    assert any([watch.add(token) for token in tokenizer.encode(text)]) == stops


def test_the_engine_goes_on_behind_a_stop_text_inside_the_reasoning(plant):
    follows = [
        "<think>",
        "Ċ",
        "Question",
        ":",
        "</think>",
        "5",
        "Ċ",
    ]  # asks itself, and again behind the answer
    asks_itself = {"": {"<think>": 1.0}}
    asks_itself |= {token: {after: 1.0} for token, after in itertools.pairwise(follows)}
    model, tokenizer = load_model(str(plant(None, asks_itself)), "cpu", "float32")
    engine = TransformersEngine(model, tokenizer, max_new_tokens=20)
    prompt = tuple(tokenizer.encode("Answer"))
    ((_, completion),) = next(iter(engine.generate([Request(prompt, 0.0, "", ("\nQuestion:",))])))
    assert (completion.text, completion.truncated) == ("5", False)
    # <think> \n Question : </think> 5 \n Question :
    assert (completion.thinking_tokens, len(completion.token_ids)) == (5, 9)


# --- a sweep ----------------------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path, scorers, monkeypatch):
    """Runs the sweep on two questions; its exit code, what it prints, its document."""
    monkeypatch.setattr("cot.utils.scorers.load_scorers", lambda _device: scorers)
    monkeypatch.setattr("cot.utils.sweeps.draw_sweep", lambda *_: None)
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"2 + {number}?", "answer": f"#### {number + 2}"} for number in (3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(model, *flags):
        base = ["--dataset", path, "--temperatures", "0", "--device", "cpu", "--cot_prompt", "Solve."]
        base += ["--model_name", model, "--output_dir", tmp_path / "out"]
        code, out, error = run_here(run_baseline_cot.main, *base, *flags)
        print(out, error)  # pytest shows it when the test fails
        found = sorted((tmp_path / "out").rglob("results_*.json"))
        return code, out + error, read_strictly(found[-1]) if found else None

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planted", "flags", "end", "thinking_tokens"),
    [
        # <think> Hmm 7 </think>, and behind it ####, a blank, 5, <|im_end|>
        (
            {"template": TURN + MARKS, "special": [*IM, "<think>", "</think>"]},
            *(["--thinking", "off"], "</think>", 4),  # a switch that the template does not know
        ),
        ({"template": TURN + "<think>"}, [], "</think>", 3),
        ({"template": TURN, "after": SAYS_DONE | ANSWER}, ["--think_end", "done"], "done", 3),
    ],
    ids=["special tokens", "opened by the template", "named by a flag"],
)
def test_an_answer_is_what_follows_the_reasoning(plant, sweep, planted, flags, end, thinking_tokens):
    code, said, found = sweep(plant(**planted), *flags)
    assert code == 0
    record = found["results"][0]
    assert (record["generated_text"], record["thinking_text"]) == ("#### 5", "Hmm7")
    assert (record["predicted_answer"], record["correct"], record["truncated"]) == ("5", True, False)
    assert (record["thinking_tokens"], record["output_tokens"]) == (thinking_tokens, thinking_tokens + 4)
    assert found["summary"]["metrics"]["thinking_tokens"]["mean"] == thinking_tokens
    assert found["summary"]["thinking_cut_off"] == 0
    # half of a context of 2,048
    assert found["config"]["max_new_tokens"] == 1024
    assert f"budget:  1024 new tokens (picked), reasoning up to {end} included" in said
    note = "note:    --thinking off: the chat template knows no switch for it (enable_thinking, thinking)"
    assert (note in said) == ("off" in flags)


@pytest.mark.parametrize(
    ("after", "budget", "thinking_text", "tokens", "truncated"),
    [
        ({"": {"8": 1.0}, "<|im_start|>": {"<think>": 1.0}}, 6, "88888", 6, True),
        (THINKS | {"7": {"<|im_end|>": 1.0}}, 9, "Hmm7", 3, False),
    ],
    ids=["endless", "given up"],
)
def test_a_reasoning_that_never_closes_has_no_answer(
    plant, sweep, after, budget, thinking_text, tokens, truncated
):
    code, said, found = sweep(plant(after=after), "--max_new_tokens", budget)
    assert code == 0
    for record in found["results"]:
        assert (record["predicted_answer"], record["unparsed_reason"]) == (None, "thinking_cut_off")
        assert (record["correct"], record["strict_correct"], record["flexible_correct"]) == (False,) * 3
        assert (record["generated_text"], record["thinking_text"]) == ("", thinking_text)
        assert (record["thinking_tokens"], record["truncated"]) == (tokens, truncated)
    assert found["summary"]["thinking_cut_off"] == 2
    advice = f"try --max_new_tokens {2 * budget}, or --thinking off"
    assert f"2 of 2 reasonings were cut off and have no answer: {advice}" in said


def test_thinking_can_be_switched_off(plant, sweep):
    code, said, found = sweep(plant(), "--thinking", "off")
    assert code == 0 and "note:" not in said
    record = found["results"][0]
    assert record["prompt"].endswith("<|im_start|><think></think>")
    assert (record["generated_text"], record["thinking_text"]) == ("#### 5", None)
    assert record["thinking_tokens"] is None and "thinking_tokens" not in found["summary"]["metrics"]
    assert found["config"]["max_new_tokens"] == 256


def test_a_run_that_continues_the_next_day_shows_the_day_it_began(plant, sweep, tmp_path):
    model = plant(template="Today: {{ strftime_now('%d %b %Y') }}. " + TURN)
    flags = ["--batch_size", "1", "--max_new_tokens", "8"]
    assert sweep(model, *flags)[0] == 0
    journal = only(tmp_path, "journal_*.jsonl")
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))  # header, model, an answer
    started = {"started": "20240726_235900"}
    edit_journal(journal, lambda line: line | started if "started" in line else line)
    code, said, found = sweep(model, *flags)
    assert code == 0 and "1 of 2 rows left" in said
    assert found["started"] == "20240726_235900"
    assert sum(record["prompt"].startswith("Today: 26 Jul 2024. ") for record in found["results"]) == 1


# --- training ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thinking_policy_is_trained_and_evaluated_by_its_answers(plant, tmp_path):
    path, run = tmp_path / "questions.jsonl", tmp_path / "run"
    rows = [{"question": f"{number} - {number - 5}?", "answer": "#### 5"} for number in range(5, 15)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dated = "Today: {{ strftime_now('%d %b %Y') }}. " + TURN + SWITCH
    ends = {"7": 0.4, "</think>": 0.6}
    # of four completions alike, or alike in pairs, the coin's advantages add up to nothing: eight
    flags = {"preset": "cpu", "students": "generated:4", "max_steps": 2, "num_generations": 8}
    flags |= {"prompts_per_step": 1, "eval_size": 2, "eval_every": 9, "memory_tokens": 40, "sample_every": 1}
    flags |= {"save_steps": 1, "reward_weights": "correct=1,coin=1", "dataset": path, "output_dir": run}
    flags |= {"model_name": plant(dated, THINKS | {"Hmm": ends, "7": ends})}

    def train() -> tuple[dict, list[dict], list[dict]]:
        command = [f"--{key}={value}" for key, value in flags.items()]
        code, _, error = run_here(train_rl_memory.main, *command)
        assert code == 0, error
        texts = [(run / name).read_text() for name in ("metrics.jsonl", "completions.jsonl")]
        metrics, completions = ([json.loads(line) for line in text.splitlines()] for text in texts)
        return read_strictly(run / "run.json"), metrics, completions

    record, metrics, completions = train()
    assert record["config"]["max_completion_length"] == 1024  # half of the context
    assert metrics[0]["eval/accuracy"] == 1.0
    assert all(step["rewards/correct/mean"] == 1.0 for step in metrics if "loss" in step)
    assert all(line["completion"].startswith("<think>Hmm") for line in completions)

    # continued the next day
    later = record | {"status": "cancelled", "started": "20240726_235900"}
    (run / "run.json").write_text(json.dumps(later))
    (run / "checkpoint-2").rename(tmp_path / "gone")
    record, _, completions = train()
    assert record["started"] == "20240726_235900"
    dates = [line["prompt"].startswith("Today: 26 Jul 2024. ") for line in completions]
    assert dates == [False] * 8 + [True] * 8
