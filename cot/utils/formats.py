"""What is settled about a run's models before their weights load: tokenizer, template, reasoning, budget.

A budget of tokens that holds an answer cuts a thinking model off in its reasoning: where no flag names a
budget, one that thinks gets a larger one, at most half of its context.
"""

import argparse
from collections.abc import Mapping
from datetime import datetime

from cot.utils.errors import UserError
from cot.utils.files import read_json
from cot.utils.gguf_header import read_header
from cot.utils.model_names import ModelSource, fetch_model
from cot.utils.models import load_tokenizer
from cot.utils.prompts import clean
from cot.utils.templates import PromptFormat, read_format

BUDGET = 256  # tokens of an answer
THINKING_BUDGET = 4096  # the same with reasoning


def format_of(
    args: argparse.Namespace, tokenizer, source: ModelSource, started: datetime | None = None
) -> PromptFormat:
    """How a model's prompts are written under the flags `system_prompt, thinking, chat_template_kwargs,
    think_end`.

    Raises:
        UserError: as `read_format`.
    """
    return read_format(
        tokenizer,
        kwargs=args.chat_template_kwargs,
        thinking=args.thinking,
        think_end=args.think_end,
        started=started,
        model_name=source.name,
        system_prompt=clean(args.system_prompt) if args.system_prompt else None,
    )


def prepare_models(
    args: argparse.Namespace,
    sources: Mapping[str, ModelSource],
    named: int | None,
    budget: int = BUDGET,
    thinking_budget: int = THINKING_BUDGET,
) -> tuple[dict, int]:
    """The tokenizer of each policy, its template checked, and the tokens that an answer may have.

    Prints that budget, and what the user should know of a template.

    Args:
        sources: by policy.
        named: the budget that a flag names; None picks one.
        budget, thinking_budget: what is picked, without and with reasoning.

    Raises:
        UserError: a tokenizer or a template that cannot be used.
    """
    tokenizers = {policy: load_tokenizer(source) for policy, source in sources.items()}
    formats = {policy: format_of(args, tokenizers[policy], source) for policy, source in sources.items()}
    for note in dict.fromkeys(note for found in formats.values() for note in found.notes):
        print(f"note:    {note}", flush=True)

    thinking = [found for found in formats.values() if found.thinks]
    picked = thinking_budget if thinking else budget
    tokens = min(half_of_context(source, picked) for source in sources.values()) if named is None else named
    ends = ", ".join(dict.fromkeys(found.reasoning.end for found in thinking))
    shown = " (picked)" if named is None else ""
    shown += f", reasoning up to {ends} included" if ends else ""
    print(f"budget:  {tokens} new tokens{shown}", flush=True)
    return tokenizers, tokens


def half_of_context(source: ModelSource, tokens: int) -> int:
    """So many tokens, or half of a model's context where that is less."""
    context = read_context(source)
    return tokens if context is None else max(1, min(tokens, context // 2))


def read_context(source: ModelSource) -> int | None:
    """Positions that a model was made for, from its files; None where they do not say."""
    source = fetch_model(source)
    if source.base:
        return read_context(source.base)
    if source.path.is_file():
        fields = read_header(source.path).fields
        context = fields.get(f"{fields['general.architecture']}.context_length")
        return None if context is None else int(context)

    config = read_json(source.path / "config.json")
    if config.get("model_type") == "qwen":  # its class is no longer in transformers
        return config.get("seq_length")
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--model_name {source.name}: cannot be loaded: {str(error)[:400]}") from error
    return getattr(loaded.get_text_config(), "max_position_embeddings", None)
