"""GGUF files whose tensors are not all used, that scale rotary frequencies, or that say how a text begins."""

import numpy as np
import pytest
from conftest import load_refusal, write_gguf

from cot.utils.errors import UserError
from cot.utils.gguf_files import ADD_BOS, ROTARY_FACTORS
from cot.utils.gguf_header import read_float32, read_header
from cot.utils.models import load_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"blk__0__ffn_up__weight": None},
            "do not fit LlamaForCausalLM: missing 1 (model.layers.0.mlp.up_proj.weight)",
        ),
        (
            {"blk__0__attn_q__bias": np.ones(32), "blk__1__mine": np.ones(3)},
            "unknown 2 (blk.0.attn_q.bias, blk.1.mine)",
        ),
        ({"output_norm__weight": np.ones(31)}, "of another shape 1 (model.norm.weight [31] instead of [32])"),
        (
            {"rope_freqs__weight": [1] * 7 + [8]},
            "it scales rotary frequencies (rope_freqs.weight, as Llama 3.1 does)",
        ),
        (
            {"add_bos": True, "bos": False},
            "tokenizer.ggml.add_bos_token is true, but the file names no such token",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "scaled", "no begin token"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, changes, message):
    assert message in load_refusal(write_gguf(tmp_path / "tiny.gguf", **changes))


def test_a_head_of_its_own_a_tied_one_and_rotary_factors_of_one_load_without_a_word(tmp_path, capfd):
    tied, _ = load_model(
        str(write_gguf(tmp_path / "tied.gguf", rope_freqs__weight=[1] * 8)), "cpu", "float32"
    )
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    path = write_gguf(tmp_path / "own.gguf", output__weight=np.ones((259, 32)))
    assert (load_model(str(path), "cpu", "float32")[0].lm_head.weight == 1).all()
    assert not capfd.readouterr().err


def test_a_file_is_parsed_once_for_its_tokenizer_and_once_for_its_model(tmp_path, monkeypatch):
    """And the map of its tensors' names, which transformers makes for every module, once."""
    import gguf

    made = []
    for name in ("GGUFReader", "TensorNameMap"):
        begin = getattr(gguf, name).__init__

        def count(self, *args, name=name, begin=begin):
            made.append(name)
            begin(self, *args)

        monkeypatch.setattr(getattr(gguf, name), "__init__", count)
    load_model(str(write_gguf(tmp_path / "tiny.gguf")), "cpu", "float32")
    assert sorted(made) == ["GGUFReader", "GGUFReader", "TensorNameMap"]


@pytest.mark.parametrize(("add_bos", "begins"), [(True, True), (False, False), (None, False)])
def test_a_text_begins_as_the_file_says(tmp_path, add_bos, begins):
    _, tokenizer = load_model(str(write_gguf(tmp_path / "tiny.gguf", add_bos)), "cpu", "float32")
    plain = tokenizer.convert_tokens_to_ids(["h", "i"])
    assert tokenizer.encode("hi") == ([1] if begins else []) + plain
    assert tokenizer.encode("hi", split_special_tokens=True) == tokenizer.encode("hi")
    assert tokenizer.encode("hi", add_special_tokens=False) == plain


def test_the_header_is_what_the_gguf_package_reads(tmp_path):
    from gguf import GGUFReader

    factors = [1.0] * 7 + [8.0]
    path = write_gguf(tmp_path / "tiny.gguf", add_bos=True, rope_freqs__weight=factors)
    header, reader = read_header(path), GGUFReader(path)
    assert header.shapes == {t.name: tuple(map(int, reversed(t.shape))) for t in reader.tensors}
    assert header.fields["tokenizer.ggml.tokens"] == 259 and header.fields["llama.block_count"] == 1
    assert header.fields["general.architecture"] == "llama" and header.fields[ADD_BOS] is True
    assert list(read_float32(path, header, ROTARY_FACTORS)) == factors


@pytest.mark.parametrize("content", [b"GGUF", b"GGML" + bytes(40), b"GGUF\x01" + bytes(40)])
def test_what_is_no_gguf_file_is_one_line(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.gguf: not a GGUF file of version 2 or 3, or cut off"):
        read_header(tmp_path / "x.gguf")
