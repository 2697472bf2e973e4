"""Thinking models: what follows the reasoning is read, in sweeps, rollouts, rewards and evaluation."""

import json

import pytest
from conftest import make_tokenizer, only, plant_policy, planted_record, read_strictly, run_here
from tokenizers import AddedToken

from cot import run_baseline_cot
from cot.utils.engine import Request, TransformersEngine
from cot.utils.models import load_model

IM = ["<|im_start|>", "<|im_end|>"]
WORDS = ["<think>", "</think>", "Hmm", "####", "Question"]
TURN = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}<|im_start|>"
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
ANSWER = {"####": {"Ġ": 1.0}, "Ġ": {"5": 1.0}, "5": {"<|im_end|>": 1.0}}
THINKS = {
    "": {"8": 1.0},
    "<|im_start|>": {"<think>": 1.0},
    "<think>": {"Hmm": 1.0},
    "Hmm": {"7": 1.0},
    "7": {"</think>": 1.0},
    "</think>": {"####": 1.0},
    **ANSWER,
}
MARKS = "{# </think> #}"  # as templates have it that cut the reasoning out of earlier turns


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """Makes a policy whose reasoning is "Hmm7" and whose answer is "#### 5"."""

    def make(template=TURN + SWITCH, after=THINKS, words=WORDS, special=IM):
        folder = tmp_path_factory.mktemp("policy") / "thinker"
        return plant_policy(folder, after, template, special=special, words=words)

    return make


@pytest.fixture(scope="module")
def scorers():
    """Loaded once: what they give is no matter here."""
    from cot.utils.sweeps import load_scorers

    return load_scorers()


@pytest.fixture
def sweep(tmp_path, scorers, monkeypatch):
    """Runs the sweep on two questions; its exit code, what it prints, its document."""
    monkeypatch.setattr("cot.utils.sweeps.load_scorers", lambda: scorers)
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


# --- a sweep ----------------------------------------------------------------------------------------------


def test_an_answer_is_what_follows_the_reasoning(plant, sweep):
    code, said, found = sweep(plant())
    assert code == 0
    record = found["results"][0]
    assert (record["generated_text"], record["thinking_text"]) == ("#### 5", "Hmm7")
    assert (record["predicted_answer"], record["correct"]) == ("5", True)
    # <think> Hmm 7 </think>, and behind it ####, a blank, 5, <|im_end|>
    assert (record["thinking_tokens"], record["output_tokens"], record["truncated"]) == (4, 8, False)
    assert found["summary"]["metrics"]["thinking_tokens"]["mean"] == 4
    assert found["summary"]["thinking_cut_off"] == 0
    # half of a context of 2,048
    assert found["config"]["max_new_tokens"] == 1024
    assert "budget:  1024 new tokens (picked), reasoning up to </think> included" in said


def test_a_reasoning_that_is_cut_off_has_no_answer(plant, sweep):
    endless = {"": {"8": 1.0}, "<|im_start|>": {"<think>": 1.0}}
    code, said, found = sweep(plant(after=endless), "--max_new_tokens", "6")
    assert code == 0
    for record in found["results"]:
        assert (record["predicted_answer"], record["unparsed_reason"]) == (None, "thinking_cut_off")
        assert (record["correct"], record["strict_correct"], record["flexible_correct"]) == (False,) * 3
        assert (record["generated_text"], record["thinking_text"]) == ("", "88888")
        assert record["thinking_tokens"] == record["output_tokens"] == 6
    assert found["summary"]["thinking_cut_off"] == 2
    assert "2 of 2 reasonings were cut off and have no answer: try --max_new_tokens 12" in said


def test_a_reasoning_that_the_model_ends_unclosed_is_no_answer_either(plant, sweep):
    gives_up = THINKS | {"7": {"<|im_end|>": 1.0}}
    (record, _) = sweep(plant(after=gives_up))[2]["results"]
    assert (record["predicted_answer"], record["unparsed_reason"]) == (None, "thinking_cut_off")
    assert (record["truncated"], record["thinking_tokens"]) == (False, 3)


def test_a_template_may_open_the_block_itself(plant, sweep):
    opened = plant(template=TURN + "<think>")
    record = sweep(opened)[2]["results"][0]
    assert record["prompt"].endswith("<|im_start|><think>")
    assert (record["generated_text"], record["thinking_text"], record["thinking_tokens"]) == (
        "#### 5",
        "Hmm7",
        3,
    )
    cut = sweep(opened, "--max_new_tokens", "2")[2]["results"][0]
    assert (cut["predicted_answer"], cut["unparsed_reason"]) == (None, "thinking_cut_off")
    assert cut["thinking_text"] == "Hmm7"  # a 7 that is no answer


def test_thinking_can_be_switched_off(plant, sweep):
    code, said, found = sweep(plant(), "--thinking", "off")
    record = found["results"][0]
    assert code == 0 and "note:" not in said
    assert record["prompt"].endswith("<|im_start|><think></think>")
    assert (record["generated_text"], record["thinking_text"], record["thinking_tokens"]) == (
        "#### 5",
        None,
        None,
    )
    assert "thinking_tokens" not in found["summary"]["metrics"]
    assert (found["config"]["thinking"], found["config"]["max_new_tokens"]) == ("off", 256)


def test_a_template_without_a_switch_says_so(plant, sweep):
    code, said, found = sweep(plant(template=TURN + MARKS), "--thinking", "off")
    assert code == 0
    assert (
        "note:    --thinking off: the chat template knows no switch for it (enable_thinking, thinking)"
        in said
    )
    assert found["results"][0]["thinking_text"] == "Hmm7"
    assert found["config"]["max_new_tokens"] == 1024  # it is going to think


def test_variables_reach_the_template_and_mistakes_are_one_line(plant, sweep):
    model = plant()
    record = sweep(model, "--chat_template_kwargs", '{"enable_thinking": false}')[2]["results"][0]
    assert record["prompt"].endswith("<think></think>")
    both = ["--thinking", "on", "--chat_template_kwargs", '{"enable_thinking": false}']
    code, said, _ = sweep(model, *both)
    assert code == 2 and "--chat_template_kwargs enable_thinking: contradicts --thinking on" in said
    code, said, _ = sweep(plant(template=None), "--chat_template_kwargs", '{"enable_thinking": false}')
    assert code == 2 and "has no chat template that could read them" in said


def test_the_end_can_be_named(plant, sweep):
    done = {"Hmm": {"7": 1.0}, "7": {"done": 1.0}, "done": {"####": 1.0}, **ANSWER}
    model = plant(TURN, {"": {"8": 1.0}, "<|im_start|>": {"Hmm": 1.0}, **done}, words=["Hmm", "####", "done"])
    record = sweep(model, "--think_end", "done")[2]["results"][0]
    assert (record["generated_text"], record["thinking_text"], record["thinking_tokens"]) == (
        "#### 5",
        "Hmm7",
        3,
    )


def test_a_bad_template_is_one_line_before_any_weights_load(plant, sweep, monkeypatch):
    model = plant(template="{{ raise_exception('no') }}")
    (model / "model.safetensors").write_bytes(b"no weights at all")
    code, said, found = sweep(model)
    assert code == 2 and found is None
    assert f"error: --model_name {model}: its chat template raises TemplateError: no" in said


# --- the date ---------------------------------------------------------------------------------------------


def test_a_run_that_continues_the_next_day_shows_the_day_it_began(plant, sweep, tmp_path):
    model = plant(template="Today: {{ strftime_now('%d %b %Y') }}. " + TURN)
    flags = ["--batch_size", "1", "--max_new_tokens", "8"]
    assert sweep(model, *flags)[0] == 0
    journal = only(tmp_path, "journal_*.jsonl")
    header, models, first, *_ = journal.read_text().splitlines(keepends=True)
    earlier = json.loads(header) | {"started": "20240726_235900"}
    journal.write_text(json.dumps(earlier) + "\n" + models + first)
    code, said, found = sweep(model, *flags)
    assert code == 0 and "1 of 2 rows left" in said
    assert found["started"] == "20240726_235900"
    assert sum(record["prompt"].startswith("Today: 26 Jul 2024. ") for record in found["results"]) == 1


# --- stop texts -------------------------------------------------------------------------------------------

STOP = ("\nQuestion:",)
ASKS_ITSELF = {  # a question inside the reasoning, and one behind the answer
    "": {"<think>": 1.0},
    "<think>": {"Ċ": 1.0},
    "Ċ": {"Question": 1.0},
    "Question": {":": 1.0},
    ":": {"</think>": 1.0},
    "</think>": {"5": 1.0},
    "5": {"Ċ": 1.0},
}


def test_a_stop_text_inside_the_reasoning_stops_nothing(plant):
    model, tokenizer = load_model(str(plant(None, ASKS_ITSELF)), "cpu", "float32")
    engine = TransformersEngine(model, tokenizer, max_new_tokens=20)
    prompt = tuple(tokenizer.encode("Answer"))
    ((_, completion),) = next(iter(engine.generate([Request(prompt, 0.0, "", STOP)])))
    assert (completion.text, completion.truncated) == ("5", False)
    # <think> \n Question : </think> 5 \n Question :
    assert len(completion.token_ids) == 9
    assert (completion.thinking_text, completion.thinking_tokens) == ("Question:", 5)


def test_rollouts_stop_where_the_engine_does(plant, tmp_path):
    from test_rollouts import inputs_of, make_trainer

    after = ASKS_ITSELF | {"": {"8": 1.0}, ":": {"<think>": 0.5, "</think>": 0.5}}
    trainer, seen = make_trainer(plant(None, after), tmp_path, stop=STOP, max_completion_length=40)
    inputs_of(trainer)
    texts, ids = seen[0]
    end = trainer.processing_class.convert_tokens_to_ids("</think>")
    for text, row in zip(texts, ids, strict=True):
        closed = end in row
        assert text.rpartition("</think>")[2].strip() == "5" if closed else text.startswith("<think>")
        assert (row[-1] == trainer.processing_class.eos_token_id) == (closed and len(row) < 40)


def test_a_mark_that_is_a_special_token_is_found(plant, sweep):
    model = plant(TURN + MARKS, words=["Hmm", "####"], special=[*IM, "<think>", "</think>"])
    record = sweep(model)[2]["results"][0]
    assert (record["generated_text"], record["thinking_text"], record["thinking_tokens"]) == (
        "#### 5",
        "Hmm7",
        4,
    )


# --- templates --------------------------------------------------------------------------------------------

KNOWN = {  # what a template writes behind the turn: does it think by itself, opened, and with --thinking off
    "Qwen3": (SWITCH, True, False, False),
    "Qwen3 thinking": ("<think>\n", True, True, True),
    "DeepSeek V3.1": (
        "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}",
        False,
        False,
        False,
    ),
    "history only": (MARKS, True, False, True),
    "no thinker": ("", False, False, False),
    "Mistral": ("{# [THINK] [/THINK] #}", True, False, True),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_template_tells_whether_its_model_thinks(kind):
    from cot.utils.templates import read_format

    tail, by_itself, opened, when_off = KNOWN[kind]
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in IM])
    tokenizer.chat_template = TURN + tail
    found = read_format(tokenizer)
    assert (found.thinks, found.reasoning.opened) == (by_itself, opened)
    assert read_format(tokenizer, thinking="off").thinks == when_off
    assert found.reasoning.end == ("[/THINK]" if kind == "Mistral" else "</think>")
    if kind == "DeepSeek V3.1":
        on = read_format(tokenizer, thinking="on")
        assert on.thinks and on.reasoning.opened and not on.notes


REAL = {  # of TRL's collection: whether it thinks by itself, with on, with off; and the end of its reasoning
    "deepseek_r1_distill": (True, True, True, "</think>"),
    "gemma3": (False, False, False, "</think>"),
    "gemma4": (False, True, False, "<channel|>"),
    "glm4moe": (True, True, False, "</think>"),
    "gptoss": (True, True, True, "<|channel|>final<|message|>"),
    "llama3_2": (False, False, False, "</think>"),
    "phi3_5": (False, False, False, "</think>"),
    "qwen2_5": (False, False, False, "</think>"),
    "qwen3": (True, True, False, "</think>"),
    "qwen3_5_nothink": (False, True, False, "</think>"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_templates_of_real_models_are_read_right(name):
    from pathlib import Path

    import trl

    from cot.utils.prompts import build_prompt
    from cot.utils.templates import read_format

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|pad|>"
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    formats = [read_format(tokenizer, thinking=thinking) for thinking in ("auto", "on", "off")]
    assert (*(found.thinks for found in formats), formats[0].reasoning.end) == REAL[name]
    prompt = build_prompt(tokenizer, "How many?", "Solve.")
    turn = [{"role": "user", "content": "Solve.\n\nQuestion: How many?"}]
    assert list(prompt.ids) == tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize(
    ("text", "end", "parts"),
    [
        (
            "<|channel|>analysis<|message|>3<|end|><|channel|>final<|message|>7",
            None,
            ("3<|end|>", "7", False),
        ),
        ("<|channel|>analysis<|message|>so 3", None, ("so 3", "", True)),
        ("<|channel>thought\nso 3<channel|>7", "<channel|>", ("so 3", "7", False)),
        ("<think>a</think>b<think>c 7", "</think>", ("<think>a</think>b<think>c 7", "", True)),  # begun again
    ],
)
def test_the_blocks_of_other_families_are_split_too(text, end, parts):
    from cot.utils.thinking import split_thinking

    assert split_thinking(text, end or "<|channel|>final<|message|>") == parts


def test_the_end_of_a_reasoning_is_no_end_of_a_turn():
    from types import SimpleNamespace

    from cot.utils.models import end_token_ids

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|end|>", "<|return|>")])
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = "analysis<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>"
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    assert end_token_ids(model, tokenizer) == {tokenizer.convert_tokens_to_ids("<|return|>")}


# --- rewards, training, summaries -------------------------------------------------------------------------


def test_rewards_read_what_follows_the_reasoning():
    from cot.utils.cli import PROFILES_DIR
    from cot.utils.students import load_profiles
    from cot.utils.thinking import Reasoning
    from rl.rewards import RewardTable, reward_parts

    parts = reward_parts(["correct", "format", "fidelity"], load_profiles(PROFILES_DIR), 100)
    steps = "1. 3 + 4 = 7\n2. 7 + 1 = 8\n#### 8"  # as S001 wishes
    texts = [f"[THINK]#### 9[/THINK]\n{steps}", f"[THINK]{steps}", steps]
    batch = {"completions": texts, "gold_solution": ["#### 8"] * 3, "memory": [""] * 3}
    batch |= {"fit_to": ["S001"] * 3, "student_id": ["S001"] * 3}
    table = RewardTable(parts, reasoning=Reasoning("[THINK]", "[/THINK]"))
    columns = [function(**batch) for function in table.functions()]
    assert columns[0] == [1.0, 0.0, 1.0] and columns[1] == [1.0, 0.0, 1.0]
    assert columns[2][0] == columns[2][2] > 0 == columns[2][1]

    opened = RewardTable(parts, reasoning=Reasoning("<think>", "</think>", opened=True))
    batch["completions"] = ["so it is 8", "so it is 9</think>#### 8", "#### 8"]
    assert opened.functions()[0](**batch) == [0.0, 1.0, 0.0]


@pytest.mark.slow
def test_a_thinking_policy_is_trained_and_evaluated_by_its_answers(plant, tmp_path):
    from cot.utils.cli import PROFILES_DIR
    from rl.train_rl_memory import main

    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"{number} - {number - 5}?", "answer": "#### 5"} for number in range(5, 15)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dated = "Today: {{ strftime_now('%d %b %Y') }}. " + TURN + SWITCH
    ends = {"7": 0.4, "</think>": 0.6}
    model = plant(dated, THINKS | {"Hmm": ends, "7": ends})

    def train():
        flags = {"preset": "cpu", "model_name": model, "dataset": path, "profiles_dir": PROFILES_DIR}
        flags |= {
            "max_steps": 2,
            "num_generations": 4,
            "prompts_per_step": 1,
            "eval_size": 2,
            "eval_every": 9,
        }
        flags |= {"memory_tokens": 40, "sample_every": 1, "save_steps": 1, "output_dir": tmp_path / "run"}
        flags |= {"reward_weights": "correct=1,coin=1"}
        code, out, error = run_here(main, *(f"--{name}={value}" for name, value in flags.items()))
        print(out, error)
        assert code == 0
        return read_strictly(tmp_path / "run" / "run.json"), [
            [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
            for name in ("metrics.jsonl", "completions.jsonl")
        ]

    run, (metrics, completions) = train()
    assert run["config"]["max_completion_length"] == 1024  # half of the context
    assert metrics[0]["eval/accuracy"] == 1.0
    assert all(step["rewards/correct/mean"] == 1.0 for step in metrics if "loss" in step)
    assert all(line["completion"].startswith("<think>Hmm") for line in completions)

    # continued the next day
    later = run | {"status": "cancelled", "started": "20240726_235900"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(later))
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "gone")
    run, (_, completions) = train()
    assert run["started"] == "20240726_235900"
    dates = [line["prompt"].startswith("Today: 26 Jul 2024. ") for line in completions]
    assert dates == [False] * 4 + [True] * 4


def test_the_summary_counts_what_was_cut_off_while_thinking():
    from cot.utils.summary import describe, look_at

    cut = {
        "unparsed_reason": "thinking_cut_off",
        "predicted_answer": None,
        "answer_mark": None,
        "truncated": True,
    }
    rows = [
        planted_record(f"q{number}", correct=number > 2, **(cut if number < 3 else {}))
        for number in range(10)
    ]
    assert (
        describe([row | {"predicted_answer": None} for row in rows[:3]] + rows[3:])["thinking_cut_off"] == 3
    )
    assert look_at(rows, 4096)[1:] == [
        "3 of 10 reasonings were cut off and have no answer: try --max_new_tokens 8192, or --thinking off"
    ]
