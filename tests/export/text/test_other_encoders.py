"""RoBERTa and CLIP: folders, export forms against transformers' modules, knocked-out terms."""

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import relative
from text_folders import CLIP, change_config, realistic_text, save_clip, save_roberta
from torch import Tensor

from refsam_export.parity.compare import MAX_RELATIVE_ERROR
from refsam_export.refsam.checkpoint import canonical_tensors, load_model, save_source
from refsam_export.refsam.init.fill import realistic_init
from refsam_export.text.encoders import read_text_folder
from refsam_export.text.graph import text_graph
from refsam_trt.errors import CheckpointError, UsageError

TOLERANCE = 1e-5
SAVE: dict[str, Callable[..., Path]] = {"RoBERTa": save_roberta, "CLIP": save_clip}
MODULES = [
    ("roberta", "gelu"),
    ("roberta", "quick_gelu"),
    ("clip_text_model", "quick_gelu"),
    ("clip_text_model", "gelu"),
]


@pytest.fixture(scope="module", params=SAVE)
def title(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(title: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVE[title](tmp_path_factory.mktemp(title))


@cache
def rows(lengths: tuple[int, ...] = (7, 64, 1, 20)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 500, (1, length), generator=generator) for length in lengths]


def graph_outputs(module: Any, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return text_graph(module, 64)(ids, mask)


def padded() -> tuple[Tensor, Tensor]:
    """All rows in one batch, another padding in each."""
    longest = max(row.shape[1] for row in rows())
    ids = torch.full((len(rows()), longest), 1)
    for index, row in enumerate(rows()):
        ids[index, : row.shape[1]] = row
        ids[index, row.shape[1] :] = index
    lengths = torch.tensor([[row.shape[1]] for row in rows()])
    return ids, torch.arange(longest) < lengths


class TestExportForm:
    @pytest.mark.parametrize(("kind", "act"), MODULES)
    def test_equals_transformers(self, kind: str, act: str) -> None:
        """Alone and in a padded batch; transformers sees each expression alone."""
        module = realistic_text(kind, act)
        batch = graph_outputs(module, *padded())
        for index, row in enumerate(rows()):
            with torch.no_grad():
                expected = module(input_ids=row).last_hidden_state[0]
            alone = graph_outputs(module, row, torch.ones_like(row) > 0)[0]
            assert relative(alone, expected) <= TOLERANCE
            assert relative(batch[index, : row.shape[1]], expected) <= TOLERANCE

    def test_clip_looks_back_only_and_roberta_both_ways(self) -> None:
        row = rows()[0]
        changed = row.clone()
        changed[0, -1] += 1
        whole = torch.ones_like(row) > 0
        for kind, looks_ahead in (("roberta", True), ("clip_text_model", False)):
            module = realistic_text(kind, "gelu")
            before, after = (graph_outputs(module, ids, whole)[0, :-1] for ids in (row, changed))
            assert (relative(after, before) > 1e-3) == looks_ahead

    @pytest.mark.parametrize(
        ("kind", "key"),
        [
            *(
                ("roberta", key)
                for key in (
                    "embeddings.position_embeddings.weight",
                    "embeddings.token_type_embeddings.weight",
                    "embeddings.LayerNorm.weight",
                    "encoder.layer.0.attention.self.query.weight",
                    "encoder.layer.0.attention.self.key.weight",
                    "encoder.layer.0.attention.self.value.bias",
                    "encoder.layer.1.attention.output.dense.weight",
                    "encoder.layer.1.attention.output.LayerNorm.bias",
                    "encoder.layer.1.intermediate.dense.bias",
                    "encoder.layer.0.output.dense.weight",
                    "encoder.layer.0.output.LayerNorm.weight",
                )
            ),
            *(
                ("clip_text_model", key)
                for key in (
                    "embeddings.position_embedding.weight",
                    "encoder.layers.0.self_attn.q_proj.weight",
                    "encoder.layers.0.self_attn.k_proj.weight",
                    "encoder.layers.0.self_attn.v_proj.bias",
                    "encoder.layers.1.self_attn.out_proj.weight",
                    "encoder.layers.1.layer_norm1.weight",
                    "encoder.layers.0.layer_norm2.bias",
                    "encoder.layers.1.mlp.fc1.bias",
                    "encoder.layers.0.mlp.fc2.weight",
                    "final_layer_norm.weight",
                )
            ),
        ],
    )
    def test_one_parameter(self, kind: str, key: str) -> None:
        module = realistic_text(kind, "gelu")
        mutated = copy.deepcopy(module)
        dict(mutated.named_parameters())[key].data.zero_()
        outputs = graph_outputs(mutated, *padded())
        assert relative(outputs, graph_outputs(module, *padded())) > MAX_RELATIVE_ERROR

    @pytest.mark.parametrize("kind", ["roberta", "clip_text_model"])
    def test_the_activation(self, kind: str) -> None:
        one, other = (realistic_text(kind, act) for act in ("gelu", "quick_gelu"))
        for key, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[key])
        found, expected = (graph_outputs(module, *padded()) for module in (one, other))
        assert relative(found, expected) > MAX_RELATIVE_ERROR

    def test_positions_begin_behind_the_pad(self) -> None:
        module = realistic_text("roberta", "gelu")
        moved = copy.deepcopy(module)
        moved.config.pad_token_id = 0
        outputs = graph_outputs(moved, *padded())
        assert relative(outputs, graph_outputs(module, *padded())) > MAX_RELATIVE_ERROR


class TestFolder:
    def test_what_is_read(self, title: str, folder: Path) -> None:
        source = read_text_folder(folder)
        module = realistic_text(source.config["model_type"], source.config["hidden_act"])
        assert source.tensors is not None
        assert source.tensors.keys() == module.state_dict().keys()
        for key, value in module.state_dict().items():
            assert torch.equal(source.tensors[key], value), key
        names = [source.name for source in source.sources]
        assert names == ["config.json", "vocab.json", "merges.txt", "model.safetensors"]
        pad = {"RoBERTa": "<pad>", "CLIP": "<|endoftext|>"}[title]
        assert source.pad_id == source.tokenizer.token_to_id(pad)

    def test_the_model_computes_what_transformers_does(self, title: str, folder: Path) -> None:
        """Loaded by each in its own way: positions and other tables are in no file."""
        import transformers

        restored = load_model("tiny", text_encoder=folder, random_init=0)
        library: Any = transformers
        reader = library.RobertaModel if title == "RoBERTa" else library.CLIPTextModel
        theirs = reader.from_pretrained(folder, local_files_only=True)
        ids = torch.tensor([restored.tokenizer.encode("the red disc").ids])
        with torch.no_grad():
            expected = theirs(input_ids=ids).last_hidden_state
            hidden = restored.model.text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert relative(hidden.last_hidden_state, expected) <= 1e-6
        assert restored.reports[-1].kind == title
        assert restored.model.text_width == 48
        assert not [key for key in restored.missing if key.startswith("text_encoder.")]

    def test_a_text_half_alone(self, tmp_path: Path) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        save_clip(tmp_path)
        half: Any = CLIPTextModel(CLIPTextConfig(**CLIP))
        inner = getattr(half, "text_model", half)
        inner.load_state_dict(realistic_text("clip_text_model", "quick_gelu").state_dict())
        half.save_pretrained(tmp_path)
        source = read_text_folder(tmp_path)
        assert source.config["model_type"] == "clip_text_model"
        assert source.tensors is not None
        assert source.tensors.keys() == inner.state_dict().keys()

    def test_our_own_file_keeps_it(self, folder: Path, tmp_path: Path) -> None:
        before = load_model("tiny", text_encoder=folder, random_init=0)
        save_source(tmp_path / "own.safetensors", before)
        restored = load_model("tiny", checkpoint=tmp_path / "own.safetensors")
        assert restored.text_config == before.text_config
        assert restored.pad_id == before.pad_id
        tensors = canonical_tensors(restored.model)
        for key, value in canonical_tensors(before.model).items():
            assert torch.equal(tensors[key], value), key

    def test_random_weights_are_refused_for_other_tensors(self, folder: Path) -> None:
        of = copy.deepcopy(load_model("tiny", text_encoder=folder, random_init=0).model)
        of.text_encoder.register_parameter("extra", torch.nn.Parameter(torch.zeros(1)))
        with pytest.raises(UsageError, match=r"no rule for text_encoder.*RoBERTa or CLIP"):
            realistic_init(of, 0)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_text_folder(folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'; expected one of gelu, quick_gelu"),
        ({"hidden_size": "48"}, "hidden_size is '48'; expected a positive whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; expected a positive whole number"),
        (
            {"num_attention_heads": 5},
            "hidden_size 48 must be a multiple of num_attention_heads 5",
        ),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; expected a small number"),
    ],
)
def test_a_model_that_is_not_covered(
    title: str, change: dict[str, Any], text: str, tmp_path: Path
) -> None:
    folder = change_config(SAVE[title](tmp_path), **change)
    assert refusal(folder) == f"{folder / 'config.json'}: {text}"


@pytest.mark.parametrize(("name", "num"), [("RoBERTa", 65), ("CLIP", 63)])
def test_too_few_positions(name: str, num: int, tmp_path: Path) -> None:
    folder = change_config(SAVE[name](tmp_path), max_position_embeddings=num)
    assert refusal(folder) == (
        f"{folder / 'config.json'}: max_position_embeddings {num} leaves 63 positions; expected at "
        "least 64, the most tokens of an expression"
    )


def test_a_roberta_without_pad(tmp_path: Path) -> None:
    folder = change_config(save_roberta(tmp_path), pad_token_id=None)
    assert "config.json: pad_token_id is None; expected a whole number" in refusal(folder)


def test_the_tokenizer_of_another_family(title: str, folder: Path, tmp_path: Path) -> None:
    other = read_text_folder(SAVE["CLIP" if title == "RoBERTa" else "RoBERTa"](tmp_path))
    mixed = SAVE[title](tmp_path)
    (mixed / "tokenizer.json").write_text(other.tokenizer.to_str())
    lacks = {"RoBERTa": "<s>, </s>, <pad>", "CLIP": "<|startoftext|>, <|endoftext|>"}[title]
    assert f"tokenizer.json: lacks the tokens {lacks}" in refusal(mixed)


def test_a_tokenizer_without_begin_and_end(title: str, folder: Path, tmp_path: Path) -> None:
    content = json.loads(read_text_folder(folder).tokenizer.to_str())
    mixed = SAVE[title](tmp_path)
    (mixed / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    assert "of the word 'a'; expected the begin token " in refusal(mixed)
    assert refusal(mixed).endswith(f", as {title}'s tokenizer does")


def test_half_a_tokenizer(title: str, tmp_path: Path) -> None:
    folder = SAVE[title](tmp_path)
    (folder / "merges.txt").unlink()
    assert refusal(folder) == (
        f"{folder}: no tokenizer; expected tokenizer.json or vocab.json and merges.txt"
    )


def test_a_damaged_vocabulary(title: str, tmp_path: Path) -> None:
    folder = SAVE[title](tmp_path)
    (folder / "vocab.json").write_text("{")
    expected = f"vocab.json: vocab.json and merges.txt are not a readable {title} tokenizer: "
    assert expected in refusal(folder)
