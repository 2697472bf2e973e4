"""The supervised step: what is learned of a lesson, and what its gradients are."""

import random

import torch
from conftest import make_model
from transformers import AutoTokenizer

from rl.explanations import calculations
from rl.lessons import Lesson
from rl.supervised import IGNORED, add_gradients, make_batch


def test_only_the_explanation_is_learned_and_its_end(tiny_tutor):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tutor)
    prompts = [tokenizer.encode("Question: 3+4?"), tokenizer.encode("Question: how much is 3+4?")]
    steps, wishes = calculations("<<3+4=7>>"), {"style": "check_at_end"}
    lessons = [Lesson(tuple(prompt), steps, wishes) for prompt in prompts]
    ids, labels = make_batch(lessons, tokenizer, random.Random(0))
    for row, prompt in enumerate(prompts):
        assert ids[row][: len(prompt)].tolist() == prompt
        learned = labels[row] != IGNORED
        assert not learned[: len(prompt)].any()
        text = tokenizer.decode(ids[row][learned])
        assert text.endswith("#### 7<|im_end|>") and "\nCheck: 7-4=3.\n" in text
        assert labels[row][learned].tolist() == ids[row][learned].tolist()
        rest = ids[row][len(prompt) + int(learned.sum()) :]
        assert (rest == tokenizer.pad_token_id).all()


def test_a_step_in_parts_has_the_gradients_of_the_whole():
    model = make_model("qwen2", vocab_size=50)
    ids = torch.randint(3, 50, (5, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :4] = IGNORED
    labels[2, 6:] = IGNORED  # rows with answers of other lengths: the mean is over tokens, not over parts

    losses, gradients = [], []
    for part_tokens in (None, 24, 1):  # five rows at once, two and two and one, one by one
        model.zero_grad()
        losses.append(add_gradients(model, ids, labels, part_tokens))
        gradients.append([weight.grad.clone() for weight in model.parameters()])

    shifted = torch.nn.functional.cross_entropy(
        model(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
    assert all(abs(loss - shifted.item()) < 1e-5 for loss in losses)
    for parts in gradients[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients[0], parts, strict=True))
