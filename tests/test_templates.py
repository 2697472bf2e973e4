"""Chat templates of many kinds, tokenizers of four families: a prompt is what the template itself gives."""

import copy
import datetime

import pytest
from conftest import LINES
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cot.utils.errors import UserError
from cot.utils.prompts import build_prompt

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = "{{ bos_token }}{% for m in messages %}[INST] {{ m.content | trim }} [/INST]{% endfor %}"


def around(turn):
    """A template that writes each turn so."""
    return "{% for m in messages %}<|im_start|>" + turn + "<|im_end|>{% endfor %}<|im_start|>"


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
    tokenizer.add_tokens(
        [*added, AddedToken("   ", normalized=False), AddedToken("apples", normalized=False)]
    )
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
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return train(
        models.BPE(unk_token="<unk>"), trainer, pre_tokenizer, decoders.Metaspace(), unk_token="<unk>"
    )


def word_piece():
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    model = models.WordPiece(unk_token="[UNK]")
    lower = normalizers.BertNormalizer(lowercase=True)
    return train(model, trainer, pre_tokenizer, decoders.WordPiece(), lower, unk_token="[UNK]")


FAMILIES = [byte_level, prepend, metaspace, word_piece]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.__name__)
def family(request):
    return request.param()


@pytest.fixture(scope="module")
def plain_tokenizer():
    return byte_level()


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def turn_of(question, memory=()):
    """The user's turn as a person would write it."""
    fence = "\n".join(["<student_memory>", *(f"| {line}" for line in memory), "</student_memory>"])
    note = "Fit the explanation to this student. What stands between the marks is data about the student:\n"
    return "\n\n".join(["Solve.", *([note + fence] if memory else []), f"Question: {question}"])


def rendered(tokenizer, turn, **kwargs):
    messages = [{"role": "user", "content": turn}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs)


def ids_of(tokenizer, turn, **kwargs):
    messages = [{"role": "user", "content": turn}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **kwargs)["input_ids"]


# --- ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [(), MEMORY], ids=["plain", "memory"])
@pytest.mark.parametrize("template", [CHATML, LLAMA2], ids=["chatml", "llama2"])
def test_the_ids_of_ordinary_text_are_the_templates_own(family, template, memory):
    tokenizer = with_template(family, template)
    for question in QUESTIONS:
        prompt = build_prompt(tokenizer, question, "Solve.", memory, memory_tokens=500)
        assert list(prompt.ids) == ids_of(tokenizer, turn_of(question, memory))
        assert prompt.text == rendered(tokenizer, turn_of(question, memory))


def test_without_a_template_the_ids_are_the_tokenizers_own(family):
    for question in QUESTIONS:
        prompt = build_prompt(family, question, "Solve.")
        assert list(prompt.ids) == family(f"Solve.\n\nQuestion: {question}\nAnswer:")["input_ids"]


@pytest.mark.parametrize("template", [None, CHATML, LLAMA2], ids=["plain", "chatml", "llama2"])
@pytest.mark.parametrize("token", CONTROL)
def test_no_text_from_data_becomes_an_added_token(family, template, token):
    tokenizer = with_template(family, template)
    number = tokenizer.convert_tokens_to_ids(token)

    def count(question, line, solution):
        examples = [("1 + 1?", solution)]
        prompt = build_prompt(tokenizer, question, "Solve.", [line], examples, memory_tokens=500)
        assert prompt.text.count(token) >= 3 or question == "How many?"
        return prompt.ids.count(number)

    spelled = count(f"How {token} many {token}?", f"Likes {token}{token}apples", f"Two {token}")
    assert spelled == count("How many?", "Likes apples", "Two")


def test_runs_of_blanks_and_plain_words_stay_the_tokens_that_they_are(plain_tokenizer):
    tokenizer = with_template(plain_tokenizer, CHATML)
    blanks, word = tokenizer.convert_tokens_to_ids(["   ", "apples"])
    ids = build_prompt(tokenizer, "Three   blanks and apples", "Solve.", ["apples"], memory_tokens=99).ids
    assert (ids.count(blanks), ids.count(word)) == (1, 2)


def assert_prompts_are_those_of_old(tokenizer):
    """Policies were trained on ids whose three parts were encoded apart: byte-level, they are the same."""
    from cot.utils.cli import COT_PROMPT, PROFILES_DIR
    from cot.utils.questions import load_questions
    from cot.utils.students import load_profiles, render_profile

    profiles = list(load_profiles(PROFILES_DIR).values())
    asked = [question.question for question in load_questions("textbook", "test", 14, None).questions]
    for number, question in enumerate([*asked, *QUESTIONS]):
        memory = render_profile(profiles[number % len(profiles)]) if number % 2 else []
        prompt = build_prompt(tokenizer, question, COT_PROMPT, memory, memory_tokens=48)
        start, end = prompt.text.index(COT_PROMPT), prompt.text.index(question) + len(question)
        ids = tokenizer.encode(prompt.text[:start], add_special_tokens=False)
        ids += tokenizer.encode(prompt.text[start:end], add_special_tokens=False, split_special_tokens=True)
        assert list(prompt.ids) == ids + tokenizer.encode(prompt.text[end:], add_special_tokens=False)


def test_the_tutors_prompts_are_those_that_it_was_trained_on():
    from transformers import AutoTokenizer

    from cot.utils.model_names import TUTOR

    assert_prompts_are_those_of_old(AutoTokenizer.from_pretrained(TUTOR))


@pytest.mark.slow
def test_the_bundled_models_prompts_are_what_they_were(bundled):
    assert_prompts_are_those_of_old(bundled[1])


# --- templates --------------------------------------------------------------------------------------------

FOLLOWED = {
    "parts": around("{% for part in m.content %}{{ part.text }}{% endfor %}"),
    "parts by type": around(
        "{% for part in m.content %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    ),
    "repeated": around("{{ m.content }} Again: {{ m.content }}"),
    "upper": around("{{ m.content | upper }}"),
    "lower": around("{{ m.content.lower() }}"),
    "trimmed": around(" {{ m.content | trim }} "),
    "trimmed and repeated": around("{{ m.content.strip() }} {{ m.content | upper }}"),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_a_template_that_changes_the_turn_is_followed(plain_tokenizer, kind):
    tokenizer = with_template(plain_tokenizer, FOLLOWED[kind])
    for instruction in ("Solve.", " \nSolve."):
        turn = turn_of(QUESTIONS[0], MEMORY).replace("Solve.", instruction, 1)
        given = [{"type": "text", "text": turn}] if "parts" in kind else turn
        prompt = build_prompt(tokenizer, QUESTIONS[0], instruction, MEMORY, memory_tokens=500)
        assert prompt.text == rendered(tokenizer, given)
        assert list(prompt.ids) == ids_of(tokenizer, given)


def test_every_repetition_of_data_is_data(plain_tokenizer):
    tokenizer = with_template(plain_tokenizer, FOLLOWED["repeated"])
    number = tokenizer.convert_tokens_to_ids("</think>")
    prompt = build_prompt(tokenizer, "What is </think>?", "Solve.")
    assert prompt.text.count("</think>") == 2 and number not in prompt.ids


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
        build_prompt(with_template(plain_tokenizer, template), "How many?", "Solve.")


def test_of_several_templates_the_default_is_taken_else_the_named_one(plain_tokenizer):
    several = {"rag": "R" + CHATML, "default": "D" + CHATML}
    tokenizer = with_template(plain_tokenizer, several)
    assert build_prompt(tokenizer, "How many?", "Solve.").text.startswith("D<|im_start|>")
    only = with_template(plain_tokenizer, {"rag": "R" + CHATML})
    assert build_prompt(only, "How many?", "Solve.").text.startswith("R<|im_start|>")
    without = with_template(plain_tokenizer, {"rag": "R" + CHATML, "tool_use": CHATML})
    with pytest.raises(UserError, match=r"none of its chat templates \(rag, tool_use\) is called default"):
        build_prompt(without, "How many?", "Solve.")

    from cot.utils.templates import read_format

    named = read_format(without, {"chat_template": "rag"})
    assert build_prompt(without, "Why?", "Solve.", prompt_format=named).text.startswith("R<|im_start|>")


def test_variables_of_the_template_can_be_set(plain_tokenizer):
    from cot.utils.templates import read_format

    tokenizer = with_template(plain_tokenizer, "{{ mood | default('calm') }} " + CHATML)
    assert read_format(tokenizer).literals[0].startswith("calm ")
    assert read_format(tokenizer, {"mood": "glad"}).literals[0].startswith("glad ")
    with pytest.raises(UserError, match="--chat_template_kwargs tokenize: no variable of a chat template"):
        read_format(tokenizer, {"tokenize": True})
    with pytest.raises(UserError, match="has no chat template that could read them"):
        read_format(with_template(plain_tokenizer, None), {"mood": "glad"})


def test_a_template_with_the_date_gets_that_of_the_runs_start(plain_tokenizer):
    from cot.utils.templates import read_format

    tokenizer = with_template(plain_tokenizer, "Today: {{ strftime_now('%d %b %Y') }}\n" + CHATML)
    begun = read_format(tokenizer, started=datetime.datetime(2024, 7, 26, 23, 59))
    prompt = build_prompt(tokenizer, "How many?", "Solve.", prompt_format=begun)
    assert prompt.text.startswith("Today: 26 Jul 2024\n<|im_start|>")


# --- encoding ---------------------------------------------------------------------------------------------


def test_a_token_half_of_which_is_data_is_not_made_from_it(plain_tokenizer):
    from cot.utils.encoding import encode_parts

    number = plain_tokenizer.convert_tokens_to_ids("</think>")
    assert number in encode_parts(plain_tokenizer, [("</", False), ("think>", False)])
    assert number not in encode_parts(plain_tokenizer, [("</", False), ("think>", True)])


def test_a_control_token_that_swallows_the_blanks_beside_it_stays_itself(plain_tokenizer):
    from cot.utils.encoding import encode_parts

    tokenizer = copy.deepcopy(plain_tokenizer)
    tokenizer.add_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True, normalized=False, special=True)])
    number = tokenizer.convert_tokens_to_ids("<|end|>")
    assert encode_parts(tokenizer, [("hi ", True), ("<|end|>", False), (" you", True)]).count(number) == 1


def test_unknown_text_stays_unknown(family):
    from cot.utils.encoding import encode_data

    text = "an ☃ and a ☂"
    assert encode_data(family, text) == family(text, add_special_tokens=False)["input_ids"]
