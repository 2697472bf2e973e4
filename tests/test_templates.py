"""Chat templates of many kinds, tokenizers of four families: a prompt is what the template itself gives."""

import copy
import datetime
import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import LINES, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cot.utils.cli import COT_PROMPT
from cot.utils.errors import UserError
from cot.utils.model_names import TUTOR
from cot.utils.models import end_token_ids
from cot.utils.paths import PROFILES_DIR
from cot.utils.prompts import build_prompt
from cot.utils.questions import load_questions
from cot.utils.student_files import load_profiles
from cot.utils.students import render_profile
from cot.utils.templates import encode_parts, read_format

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def around(turn, tail=""):
    """A template that writes each turn so, and behind them all the tail."""
    return "{% for m in messages %}<|im_start|>" + turn + "<|im_end|>{% endfor %}<|im_start|>" + tail


LLAMA2 = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}"
REPEATED = around("{{ m.content }} Again: {{ m.content }}")
QUESTIONS = [
    "Ann has 3 apples and buys 4 more.\nHow many apples has she now?",
    "Is 5 < 6, and what is (3 + 4) * 2?   Two  blanks.",
    "#### 7 | é — 你",
]
MEMORY = ["Ann, 3rd grade.", "Likes: apples, (and) more"]
CONTROL = ["<|im_start|>", "<|im_end|>", "<s>", "[INST]", "[/INST]", "</think>"]


def train(model, trainer, pre_tokenizer, decoder, normalizer=None, **special):
    """A tokenizer of a family, trained on a few lines, with control tokens of which some are not special."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoder
    tokenizer.train_from_iterator([*LINES, *QUESTIONS, *MEMORY, "Solve. Question: Answer: user"], trainer)
    added = [AddedToken(token, special="im" in token, normalized=False) for token in CONTROL]
    ordinary = [AddedToken(token, normalized=False) for token in ("   ", "apples")]
    tokenizer.add_tokens([*added, *ordinary])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", **special
    )


def byte_level():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train(models.BPE(), trainer, pre_tokenizer, decoders.ByteLevel())


def prepend():
    """As Llama 2: a blank before every text, and blanks as `▁`."""
    blanks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    return train(models.BPE(unk_token="<unk>"), trainer, None, decoders.Fuse(), blanks, unk_token="<unk>")


def metaspace():
    """As Mistral and Gemma: the same in the pre-tokenizer, before the first word only."""
    model = models.BPE(unk_token="<unk>")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return train(model, trainer, pre_tokenizer, decoders.Metaspace(), unk_token="<unk>")


@pytest.fixture(scope="module", params=[byte_level, prepend, metaspace], ids=lambda family: family.__name__)
def family(request):
    return request.param()


@pytest.fixture(scope="module")
def plain_tokenizer():
    return byte_level()


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def turn_of(question, memory=(), instruction="Solve."):
    """The user's turn as a person would write it."""
    fence = "\n".join(["<student_memory>", *(f"| {line}" for line in memory), "</student_memory>"])
    note = "Fit the explanation to this student. What stands between the marks is data about the student:\n"
    return "\n\n".join([instruction, *([note + fence] if memory else []), f"Question: {question}"])


def given_by_template(tokenizer, turn):
    """What the tokenizer itself makes of the user's turn: text and ids."""
    messages = [{"role": "user", "content": turn}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text, tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


# --- ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, CHATML, LLAMA2], ids=["plain", "chatml", "llama2"])
def test_the_ids_of_ordinary_text_are_the_models_own(family, template):
    tokenizer = with_template(family, template)
    for question, memory in itertools.product(QUESTIONS, [(), MEMORY]):
        prompt = build_prompt(tokenizer, question, "Solve.", memory, memory_tokens=500)
        turn = turn_of(question, memory)
        plain = f"{turn}\nAnswer:"
        given = given_by_template(tokenizer, turn) if template else (plain, tokenizer(plain)["input_ids"])
        assert (prompt.text, list(prompt.ids)) == given


@pytest.mark.parametrize("template", [None, LLAMA2, REPEATED], ids=["plain", "llama2", "repeated"])
def test_no_text_from_data_becomes_an_added_token(family, template):
    tokenizer = with_template(family, template)

    def ask(question, line, solution):
        examples = [("1 + 1?", solution)]
        return build_prompt(tokenizer, question, "Solve.", [line], examples, memory_tokens=500)

    bare = ask("How many?", "Likes apples", "Two")
    for token in CONTROL:
        number = tokenizer.convert_tokens_to_ids(token)
        prompt = ask(f"How {token} many {token}?", f"Likes {token}{token}apples", f"Two {token}")
        assert prompt.text.count(token) >= 3  # the memory spells it with a blank
        assert prompt.ids.count(number) == bare.ids.count(number)


def test_a_token_half_of_which_is_data_is_not_made_from_it(plain_tokenizer):
    number = plain_tokenizer.convert_tokens_to_ids("</think>")
    assert number in encode_parts(plain_tokenizer, [("</", False), ("think>", False)])
    assert number not in encode_parts(plain_tokenizer, [("</", False), ("think>", True)])


def test_a_policys_prompts_are_those_that_it_was_trained_on():
    """Policies were trained on ids whose three parts were encoded apart: byte-level, they are the same."""
    tokenizer = AutoTokenizer.from_pretrained(TUTOR)
    profiles = list(load_profiles(PROFILES_DIR).values())
    asked = [question.question for question in load_questions("textbook", "test", 14, None).questions]
    for number, question in enumerate([*asked, *QUESTIONS]):
        memory = render_profile(profiles[number % len(profiles)]) if number % 2 else []
        prompt = build_prompt(tokenizer, question, COT_PROMPT, memory, memory_tokens=48)
        start, end = prompt.text.index(COT_PROMPT), prompt.text.index(question) + len(question)
        ids = tokenizer.encode(prompt.text[:start], add_special_tokens=False)
        ids += tokenizer.encode(prompt.text[start:end], add_special_tokens=False, split_special_tokens=True)
        assert list(prompt.ids) == ids + tokenizer.encode(prompt.text[end:], add_special_tokens=False)


# --- templates --------------------------------------------------------------------------------------------

OF_TYPE_TEXT = "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
FOLLOWED = {
    "parts": around("{% for part in m.content %}{{ part.text }}{% endfor %}"),
    "parts by type": around("{% for part in m.content %}" + OF_TYPE_TEXT + "{% endfor %}"),
    "repeated": REPEATED,
    "upper": around("{{ m.content | upper }}"),
    "lower": around("{{ m.content.lower() }}"),
    "trimmed": around(" {{ m.content | trim }} "),
    "trimmed and repeated": around("{{ m.content.strip() }} {{ m.content | upper }}"),
}


@pytest.mark.parametrize("instruction", ["Solve.", " \nSolve."], ids=["flush", "blanks"])
@pytest.mark.parametrize("kind", FOLLOWED)
def test_a_template_that_changes_the_turn_is_followed(plain_tokenizer, kind, instruction):
    tokenizer = with_template(plain_tokenizer, FOLLOWED[kind])
    turn = turn_of(QUESTIONS[0], MEMORY, instruction)
    given = [{"type": "text", "text": turn}] if "parts" in kind else turn
    prompt = build_prompt(tokenizer, QUESTIONS[0], instruction, MEMORY, memory_tokens=500)
    assert (prompt.text, list(prompt.ids)) == given_by_template(tokenizer, given)


REFUSED = {
    "{{ raise_exception('Only for tools') }}": "its chat template raises TemplateError: Only for tools",
    "{% for m in messages %}{{ m.content": "its chat template raises TemplateSyntaxError",
    "Hello!": "its chat template does not show the user's turn",
    around("{{ m.content | title }}"): "its chat template changes the user's turn in a way",
    around("{{ m.content | replace('é', 'e') }}"): "its chat template changes the user's turn in a way",
}


@pytest.mark.parametrize("template", REFUSED, ids=range(len(REFUSED)))
def test_a_template_that_cannot_be_followed_is_one_line(plain_tokenizer, template):
    with pytest.raises(UserError, match=REFUSED[template]):
        read_format(with_template(plain_tokenizer, template))


DATED = "{{ strftime_now('%d %b %Y') }} {{ mood | default('calm') }} " + CHATML
BEGUN = datetime.datetime(2024, 7, 26, 23, 59)


@pytest.mark.parametrize(
    ("template", "options", "begins"),
    [
        # of several the default is taken, else the one that was named
        ({name: name + CHATML for name in ("rag", "default")}, {}, "default<|im_start|>"),
        ({"rag": "rag" + CHATML}, {}, "rag<|im_start|>"),
        (
            {name: name + CHATML for name in ("rag", "tool_use")},
            {"kwargs": {"chat_template": "rag"}},
            "rag<|im_start|>",
        ),
        # the date is that of the run's start, and variables can be set
        (DATED, {"started": BEGUN}, "26 Jul 2024 calm "),
        (DATED, {"started": BEGUN, "kwargs": {"mood": "glad"}}, "26 Jul 2024 glad "),
    ],
)
def test_a_template_is_chosen_and_given_its_variables(plain_tokenizer, template, options, begins):
    assert read_format(with_template(plain_tokenizer, template), **options).literals[0].startswith(begins)


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ({"rag": CHATML, "use": CHATML}, {}, r"none of its chat templates \(rag, use\) is called"),
        (CHATML, {"kwargs": {"chat_template": "rag"}}, "chat_template: .* has a single template"),
        (CHATML, {"kwargs": {"tokenize": True}}, "tokenize: no variable of a chat template"),
        (None, {"kwargs": {"mood": "glad"}}, "has no chat template that could read them"),
        (
            CHATML,
            {"kwargs": {"enable_thinking": False}, "thinking": "on"},
            "--chat_template_kwargs enable_thinking: contradicts --thinking on",
        ),
    ],
    ids=["unnamed", "single", "taken", "absent", "contradiction"],
)
def test_what_no_template_can_be_given_is_refused(plain_tokenizer, template, options, message):
    with pytest.raises(UserError, match=message):
        read_format(with_template(plain_tokenizer, template), **options)


# --- reasoning --------------------------------------------------------------------------------------------

THINKING_SWITCH = "{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}"
OUTLINES = {
    "DeepSeek V3.1": around("{{ m.content }}", THINKING_SWITCH),
    "history only": around("{{ m.content }}", "{# </think> #}"),
    "always closed": around("{{ m.content }}", "<think></think>"),
    "Mistral": around("{{ m.content }}", "{# [THINK] [/THINK] #}"),
}
# With --thinking auto, on and off: whether the model thinks, and whether the prompt has opened its reasoning
# (T, O), or not (-); how many notes the user gets; and the end of the reasoning.
REASONING = {
    "DeepSeek V3.1": ("- O -", (0, 0, 0), "</think>"),
    "history only": ("T T T", (0, 1, 1), "</think>"),
    "always closed": ("- - -", (0, 1, 1), "</think>"),
    "Mistral": ("T T T", (0, 1, 1), "[/THINK]"),
    # of TRL's collection
    "deepseek_r1_distill": ("O O O", (0, 1, 1), "</think>"),
    "gemma4": ("- T -", (0, 0, 0), "<channel|>"),
    "glm4moe": ("T T -", (0, 0, 0), "</think>"),
    "gptoss": ("T T T", (0, 1, 1), "<|channel|>final<|message|>"),
    "qwen2_5": ("- - -", (0, 2, 1), "</think>"),
    "qwen3": ("T T -", (0, 0, 0), "</think>"),
    "qwen3_6": ("O O -", (0, 0, 0), "</think>"),
}


@pytest.mark.parametrize("name", REASONING)
def test_a_template_tells_whether_its_model_thinks(name):
    import trl

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|pad|>"
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    tokenizer.chat_template = OUTLINES.get(name) or path.read_text(encoding="utf-8")
    formats = [read_format(tokenizer, thinking=thinking) for thinking in ("auto", "on", "off")]
    seen = ["-" if not found.thinks else "O" if found.reasoning.opened else "T" for found in formats]
    notes = tuple(len(found.notes) for found in formats)
    assert (" ".join(seen), notes, formats[0].reasoning.end) == REASONING[name]

    prompt = build_prompt(tokenizer, "How many?", "Solve.")
    assert (prompt.text, list(prompt.ids)) == given_by_template(tokenizer, turn_of("How many?"))


def test_the_end_of_a_reasoning_is_no_end_of_a_turn():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<|end|>", "<|return|>")])
    tokenizer.eos_token = "<|return|>"
    tokenizer.chat_template = "analysis<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>"
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    assert end_token_ids(model, tokenizer) == {tokenizer.convert_tokens_to_ids("<|return|>")}


# --- the system turn --------------------------------------------------------------------------------------

SYSTEM = 'Be brief, say "5 < 6".'
MERGED = (  # as Gemma 3 and Llama 2: the system's text opens the user's turn
    "{% set head = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role == 'user' %}"
    "<|im_start|>{{ (head + m.content) | trim }}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, MERGED, LLAMA2, REPEATED])
def test_a_system_turn_stands_where_the_template_puts_it(family, template):
    tokenizer = with_template(family, template)
    found = read_format(tokenizer, system_prompt=f" {SYSTEM}\n")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": turn_of(QUESTIONS[0])}]
    prompt = build_prompt(tokenizer, QUESTIONS[0], "Solve.", prompt_format=found)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert prompt.text == expected and SYSTEM in expected
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(prompt.ids) == expected
    plain = build_prompt(tokenizer, QUESTIONS[0], "Solve.", prompt_format=read_format(tokenizer))
    assert SYSTEM not in plain.text


def test_a_control_token_in_a_system_turn_stays_text(plain_tokenizer):
    tokenizer = with_template(plain_tokenizer, CHATML)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def count_ends(system_prompt):
        found = read_format(tokenizer, system_prompt=system_prompt)
        return build_prompt(tokenizer, "1 + 1?", "Solve.", prompt_format=found).ids.count(end)

    assert (
        count_ends("Be brief.") == count_ends("Be <|im_end|> brief.") == 2
    )  # of the system's and the user's


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "--system_prompt: --model_name has no chat template, so no system turn"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
            + CHATML,
            "--system_prompt: --model_name : its chat template raises TemplateError: no system role",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
            "--system_prompt: --model_name : its chat template does not show the system's turn",
        ),
        (
            "{% for m in messages %}{{ m.content | replace('<', '(') if m.role == 'system' else m.content }}"
            "{% endfor %}",
            "--system_prompt: --model_name : its chat template changes the system's turn",
        ),
    ],
)
def test_a_system_turn_that_the_template_does_not_take_is_one_line(plain_tokenizer, template, message):
    tokenizer = with_template(plain_tokenizer, template)
    with pytest.raises(UserError) as caught:
        read_format(tokenizer, system_prompt=SYSTEM)
    assert str(caught.value).startswith(message)
    read_format(tokenizer)  # without one it can be used
