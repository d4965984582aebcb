"""Quantize: every format on every family, proven against modelopt; what cannot be done is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openclaw_opt.artifacts import Model
from openclaw_opt.checkpoint import open_checkpoint
from openclaw_opt.data import Source, parse_source
from openclaw_opt.errors import RecipeError, VerificationError
from openclaw_opt.models import calibrate, folding, modelopt
from openclaw_opt.models.calibrate import Calibration, decoder_calibration
from openclaw_opt.models.decoder import Decoder
from openclaw_opt.models.families import spec_from_config
from openclaw_opt.models.layerwise import each_gram
from openclaw_opt.models.linear import QuantConv2d, QuantLayer, QuantLinear
from openclaw_opt.models.load import load_model
from openclaw_opt.models.schemes import Scheme
from openclaw_opt.models.spec import LayerSpec, read_facts
from openclaw_opt.models.store import open_model
from openclaw_opt.passes import Done, View, Work
from openclaw_opt.passes._linears import linear_sizes
from openclaw_opt.passes.prune import Prune
from openclaw_opt.passes.quantize import ALGORITHMS, PLAIN, Quantize
from openclaw_opt.records import LayerRecord
from openclaw_opt.targets import TARGETS
from tests.passes_alone import CPU, TEXT, Alone, silent
from tests.tiny import DECODERS, open_tiny, write_checkpoint

ROOT = Path(__file__).parent.parent
PAIRS = [(fmt, algorithm) for fmt, algorithms in ALGORITHMS.items() for algorithm in algorithms]


def tokens(samples: int = 16, length: int = 64) -> Calibration:
    ids = torch.randint(3, 256, (samples, length), generator=torch.Generator().manual_seed(1))
    return decoder_calibration(ids, 8, "of the test")


class Runner:
    """Quantize passes on a tiny checkpoint."""

    def __init__(self, folder: Path, family: str, **changes: Any) -> None:
        self.alone = Alone(folder, family, **changes)
        self.folder, self.checkpoint, self.model = folder, self.alone.checkpoint, self.alone.model

    def __call__(self, batches: Calibration | None, model: Model | None = None, **options: Any) -> Done[Model]:
        return self.alone(Quantize(**options), model or self.model, batches)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("llama"), "llama")


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return open_model(model)(*tokens(2).batches[0])[0]


# What comes out.


@pytest.mark.parametrize(("fmt", "algorithm"), PAIRS)
def test_each_format_on_llama(llama: Runner, fmt: str, algorithm: str) -> None:
    done = llama(tokens(), format=fmt, algorithm=algorithm)
    names = [name for name in linear_sizes(read_facts(llama.model).spec) if name != "head"]
    assert done.count == 8
    assert done.changed.startswith(f"8 of 9 linear layers to {fmt} ({algorithm}")
    facts = read_facts(done.artifact)
    assert list(facts.quant) == names
    assert {quant.format for quant in facts.quant.values()} == {fmt}
    assert facts.notes[-1] == done.changed
    rows = [LayerRecord.model_validate(row) for row in json.loads(json.dumps(done.details["layers"]))]
    assert [row.name for row in rows] == names
    least = {"int8": 40, "int8_weight_only": 40, "int8_per_token": 40, "fp8": 28, "int4": 17, "uint4": 17, "nvfp4": 17}[
        fmt
    ]
    moved = 5 if algorithm.endswith("gptq") else 0  # the weight is moved so that the output is right
    assert all(row.weight_sqnr_db is not None and row.weight_sqnr_db > least - moved for row in rows)
    for row in rows:
        assert (row.plain_output_sqnr_db is None) == (row.plain_weight_sqnr_db is None) == (algorithm in PLAIN)
    if moved:
        assert all(row.output_sqnr_db > row.plain_output_sqnr_db for row in rows), rows  # type: ignore[operator]
    assert all(row.output_sqnr_db is not None and row.output_sqnr_db > least - 17 for row in rows)
    assert rows[0].parameters == (4 + 2 + 2) * 16 * 64
    assert done.details["largest_difference_from_fake_quantized"] < 1e-6
    assert done.details["calibration"]["tokens"] == 1024
    assert done.details["kept"] == ["head"]
    module = open_model(done.artifact)
    assert sum(isinstance(layer, QuantLinear) for layer in module.modules()) == 8
    drift = (logits(done.artifact) - logits(llama.model)).norm() / logits(llama.model).norm()
    assert (
        0
        < drift
        < {
            "int8": 0.12,
            "int8_weight_only": 0.06,
            "int8_per_token": 0.12,
            "fp8": 0.3,
            "int4": 0.7,
            "uint4": 0.7,
            "nvfp4": 0.9,
        }[fmt]
    )


def test_the_sentence_states_alpha_and_block(llama: Runner) -> None:
    assert llama(tokens(), format="int8").changed == "8 of 9 linear layers to int8 (smoothquant, alpha 0.5)"
    assert llama(None, format="int4", algorithm="rtn").changed == "8 of 9 linear layers to int4 (rtn, blocks of 32)"


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in DECODERS if name != "llama"])
def test_every_decoder_family(family: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, family)
    for fmt, algorithm in (("int8", "smoothquant"), ("int4", "rtn")):
        done = runner(tokens(), format=fmt, algorithm=algorithm)
        layers = len(read_facts(runner.model).spec.layers)  # type: ignore[union-attr]
        assert done.count == 4 * layers
        assert done.details["largest_difference_from_fake_quantized"] < 1e-6
        assert torch.isfinite(logits(done.artifact)).all()


def test_weights_alone_need_no_data(llama: Runner) -> None:
    for fmt, algorithm in (("int8_weight_only", "max"), ("int4", "rtn")):
        done = llama(None, format=fmt, algorithm=algorithm)
        assert all(row["output_sqnr_db"] is None and row["weight_sqnr_db"] for row in done.details["layers"])
        assert done.details["calibration"]["tokens"] == 0


@pytest.mark.parametrize(("fmt", "algorithm"), [("int8_weight_only", "max"), ("int4", "rtn")])
def test_rounding_to_nearest_is_modelopts(llama: Runner, fmt: Any, algorithm: Any) -> None:
    """What the pass does without it: its own quantizers on the same layers give the same weights, and the same outputs."""
    done, theirs = llama(None, format=fmt, algorithm=algorithm), open_model(llama.model)
    ours, scheme = open_model(done.artifact), Quantize(format=fmt, algorithm=algorithm).job("decoder").scheme
    names = list(read_facts(done.artifact).quant)
    modelopt.calibrated(theirs, names, scheme, None, silent)
    for name in names:
        layer, made = theirs.get_submodule(name), ours.get_submodule(name)
        assert isinstance(made, QuantLinear)
        torch.testing.assert_close(layer.weight_quantizer(layer.weight), made.weight_values(torch.float32))  # type: ignore[operator]
        modelopt.prove_equal(name, layer, made, torch.randn(32, made.in_features))


@pytest.mark.slow
def test_what_modelopt_adds_nothing_to_does_not_load_it(llama: Runner, tmp_path: Path) -> None:
    """It takes longer to import than a small model takes to round."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {llama.checkpoint.folder}\ntarget: host\nmetrics: []\n"
        "passes: [{quantize: {format: int4, algorithm: rtn}}, export, fuse, {build: {backend: onnxruntime}}]\n"
    )
    code = (
        "import sys; from openclaw_opt.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'modelopt', 'datasets'}))"
    )
    places = ["--cache", str(tmp_path / "cache"), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-c", code, "build", "--recipe", str(recipe), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_source_is_left_as_it_was(llama: Runner, tmp_path: Path) -> None:
    before = (llama.model.folder / "model.safetensors").read_bytes()
    llama(tokens(), format="int8", algorithm="smoothquant")
    assert (llama.model.folder / "model.safetensors").read_bytes() == before


def test_the_same_input_gives_the_same_file(llama: Runner) -> None:
    first, second = (llama(tokens(), format="int8", algorithm="max").artifact for _ in range(2))
    assert (first.folder / "model.safetensors").read_bytes() == (second.folder / "model.safetensors").read_bytes()


def test_keep_takes_patterns(llama: Runner) -> None:
    done = llama(tokens(), format="int8", algorithm="max", keep=("layers.0.*", "*.down", "head"))
    assert list(read_facts(done.artifact).quant) == ["layers.1.qkv", "layers.1.o", "layers.1.gate_up"]
    done = llama(tokens(), format="int8", algorithm="max", keep=())
    assert done.count == 9


def test_a_second_pass_takes_what_the_first_left(llama: Runner) -> None:
    first = llama(tokens(), format="int4", algorithm="rtn", keep=("head", "*.down"))
    second = llama(tokens(), first.artifact, format="int8", algorithm="smoothquant", keep=("head",))
    formats = {name: quant.format for name, quant in read_facts(second.artifact).quant.items()}
    assert formats["layers.0.qkv"] == "int4"
    assert formats["layers.0.down"] == "int8"
    assert second.changed == "2 of 3 linear layers to int8 (smoothquant, alpha 0.5)"
    assert second.details["folded"] == ["layers.0.down", "layers.1.down"]


def test_a_tied_head_is_quantized_and_the_embedding_is_not(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "llama-linear")
    done = runner(tokens(), format="int8", keep=())
    module = open_model(done.artifact)
    assert isinstance(module.head, QuantLinear)
    original = open_model(runner.model)
    assert torch.equal(module.embed.weight, original.embed.weight)
    assert done.details["layers"][-1]["note"] == "was tied to the embedding, which stays float"


@pytest.mark.slow
def test_dead_layers_are_named_and_give_no_nan(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "llama")
    module = open_model(runner.model)
    assert isinstance(module, Decoder)
    module.layers[0].gate_up.weight[:] = 0  # so the input of `down` is zero
    module.layers[1].o.weight[5:8] = 0
    from openclaw_opt.models.store import save_model

    dead = save_model(module, read_facts(runner.model), tmp_path / "dead", runner.model.assets)
    for fmt, algorithm in PAIRS:
        done = runner(tokens(), dead, format=fmt, algorithm=algorithm)
        notes = {row["name"]: row["note"] for row in done.details["layers"]}
        assert "64 of 64" not in notes["layers.1.qkv"]
        assert "192 of 192 output channels are zero" in notes["layers.0.gate_up"]
        assert "3 of 64 output channels are zero" in notes["layers.1.o"]
        if fmt in ("int8", "fp8", "nvfp4"):
            assert "its input is zero on all calibration data" in notes["layers.0.down"]
        assert torch.isfinite(logits(done.artifact)).all()
        half = open_model(done.artifact).half()
        assert torch.isfinite(half(*tokens(2).batches[0])[0]).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_an_unused_input_channel_stays_unused(llama: Runner, tmp_path: Path, alpha: float) -> None:
    from openclaw_opt.models.store import save_model

    module = open_model(llama.model)
    assert isinstance(module, Decoder)
    module.layers[0].qkv.weight[:, [5, 9]] = 0
    unused = save_model(module, read_facts(llama.model), tmp_path / "unused", llama.model.assets)
    done = llama(tokens(), unused, format="int8", algorithm="smoothquant", alpha=alpha)
    layer = open_model(done.artifact).get_submodule("layers.0.qkv")
    assert isinstance(layer, QuantLinear)
    assert layer.weight_q[:, [5, 9]].count_nonzero() == 0
    assert (layer.weight_q.abs().amax(1) == 127).all()  # no row's scale is another's


# Encoders and vision models.


def sentences() -> Calibration:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256, (32, 40), generator=generator)
    lengths = torch.randint(8, 41, (32,), generator=generator)
    mask = (torch.arange(40) < lengths[:, None]).long()
    return Calibration(calibrate.sentence_batches(ids * mask, mask, 8), 32, int(mask.sum()))


def pictures(channels: int, size: int) -> Calibration:
    images = torch.randn(32, channels, size, size, generator=torch.Generator().manual_seed(0))
    return Calibration(tuple((part,) for part in images.split(8)), 32, 0)


def test_sentence_batches_hold_each_sentence_once_with_little_padding() -> None:
    made = sentences()
    assert sum(len(batch[0]) for batch in made.batches) == 32
    assert sum(int(batch[1].sum()) for batch in made.batches) == made.tokens
    padding = sum(int((1 - batch[1]).sum()) for batch in made.batches)
    assert padding < 0.25 * made.tokens


@pytest.mark.parametrize("fmt", list(ALGORITHMS))
def test_bert(fmt: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, "bert")
    done = runner(sentences(), format=fmt)
    assert done.count == 12
    assert done.details["unreached"] in ([], ["model.pooler.dense"])
    assert done.details["calibration"]["algorithm"] in ("max", "rtn")
    module = open_model(done.artifact)
    batch = sentences().batches[0]
    with torch.no_grad():
        after, before = module(*batch)[1], open_model(runner.model)(*batch)[1]
    assert torch.cosine_similarity(after, before).min() > {"int8": 0.99}.get(fmt, 0.8)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bert"])
def test_streamed_inputs_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    module, text = open_model(Runner(tmp_path, family).model), sentences() if family == "bert" else tokens()
    names = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    names = [name for name in names if "pooler" not in name]
    whole: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        rows = x.flatten(0, -2)
        whole[name] = whole.get(name, 0) + rows.T @ rows

    with calibrate.watched(module, names, add):
        calibrate.run_batches(module, text, silent, "whole")
    streamed: dict[str, torch.Tensor] = {}
    each_gram(module, names, text, streamed.__setitem__, silent)
    assert list(streamed) == list(whole)  # in the order of computation
    for name, gram in whole.items():
        assert torch.allclose(streamed[name], gram, rtol=1e-3, atol=1e-4 * float(gram.abs().max())), name


def test_later_layers_see_what_earlier_ones_became(llama: Runner) -> None:
    module, seen = open_model(llama.model), {}

    def silence(name: str, gram: torch.Tensor) -> None:
        seen[name] = float(gram.diagonal().sum())
        if name == "layers.0.o":
            module.get_submodule(name).weight.zero_()  # type: ignore[operator, union-attr]

    names = ["layers.0.o", "layers.1.qkv", "layers.1.down"]
    each_gram(module, names, tokens(), silence, silent)
    untouched: dict[str, float] = {}
    again = open_model(llama.model)
    each_gram(again, names, tokens(), lambda name, gram: untouched.update({name: float(gram.diagonal().sum())}), silent)
    assert seen["layers.0.o"] == pytest.approx(untouched["layers.0.o"])
    assert seen["layers.1.down"] != pytest.approx(untouched["layers.1.down"], rel=1e-3)


@pytest.mark.parametrize("algorithm", ["gptq", "awq_full"])
def test_bert_rounded_with_its_inputs(algorithm: str, tmp_path: Path) -> None:
    done = Runner(tmp_path, "bert")(sentences(), format="int4", algorithm=algorithm)
    assert done.count == 12
    rows = done.details["layers"]
    assert all(row["output_sqnr_db"] > row["plain_output_sqnr_db"] for row in rows), rows


def real(split: str) -> Source:
    return parse_source({"source": "python-stdlib", "split": split, "samples": 8, "length": 128})


@pytest.mark.slow
def test_gptq_beats_rounding_on_the_demo_decoder(tmp_path: Path) -> None:
    """Real weights, real text: on the layers' own data, and at the logits on text that nothing was calibrated on."""
    checkpoint = open_checkpoint(str(ROOT / "examples" / "tiny-llama"))
    model, _, _ = load_model(checkpoint, tmp_path / "model")
    data, unseen = (real(split) for split in ("calibration", "evaluation"))
    batches = calibrate.load_calibration(unseen, read_facts(model), model, tmp_path / "cache", 8).batches[0]
    with torch.no_grad():
        exact = open_model(model)(*batches)[0]
    errors = {}
    for algorithm in ("rtn", "awq_full", "gptq"):
        work = Work(tmp_path / algorithm, checkpoint, CPU, "onnxruntime", data, tmp_path / "cache", progress=silent)
        done = Quantize(format="int4", algorithm=algorithm).run(model, work)
        with torch.no_grad():
            errors[algorithm] = float((open_model(done.artifact)(*batches)[0] - exact).norm())
        if algorithm != "rtn":
            rows = done.details["layers"]
            assert all(row["output_sqnr_db"] > row["plain_output_sqnr_db"] for row in rows), rows
    assert errors["gptq"] < 0.75 * errors["rtn"], errors
    assert errors["gptq"] < errors["awq_full"], errors


def test_bert_with_input_factors(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "bert")
    done = runner(Calibration(sentences().batches * 2, 64, 1500), format="int8", algorithm="smoothquant")
    assert done.details["folded"] == []
    assert all(quant.pre_scale for quant in read_facts(done.artifact).quant.values())


@pytest.mark.parametrize("fmt", ["int8", "fp8", "int4"])
def test_vit(fmt: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, "vit")
    done = runner(pictures(3, 16), format=fmt)
    module = open_model(done.artifact)
    assert sum(isinstance(layer, QuantConv2d) for layer in module.modules()) == (0 if fmt == "int4" else 1)
    assert sum(isinstance(layer, QuantLinear) for layer in module.modules()) == 12
    assert done.details["kept"] == ["model.classifier"]


@pytest.mark.parametrize("fmt", ["int8", "fp8"])
def test_resnet(fmt: str, tmp_path: Path) -> None:
    runner = Runner(tmp_path, "resnet")
    done = runner(pictures(1, 32), format=fmt)
    module = open_model(done.artifact)
    found = [layer for layer in module.modules() if isinstance(layer, QuantLayer)]
    assert len(found) == done.count > 3
    assert all(isinstance(layer, QuantConv2d) for layer in found)
    assert done.details["largest_difference_from_fake_quantized"] < 1e-6


# Data as the recipe names it, not as a test makes it.


def words(folder: Path, lines: int) -> Source:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 256, (lines, 40), generator=generator).tolist()
    (folder / "text.txt").write_text("\n".join(" ".join(f"<{i}>" for i in line) for line in ids))
    entry = {"source": "text", "path": str(folder / "text.txt"), "unit": "line", "samples": 32, "length": 32}
    return parse_source(entry)


@pytest.mark.parametrize(
    ("family", "source"),
    [("llama", "words"), ("bert", "words"), ("resnet", {"source": "digits", "split": "calibration", "samples": 16})],
)
def test_a_source_is_loaded(tmp_path: Path, family: str, source: str | dict[str, Any]) -> None:
    runner = Runner(tmp_path, family)
    data = words(tmp_path, 64) if isinstance(source, str) else parse_source(source)
    work = Work(tmp_path / "out", runner.checkpoint, CPU, "onnxruntime", data, tmp_path / "cache", progress=silent)
    quantize = Quantize(format="int8")
    assert quantize.check(View(read_facts(runner.model).spec, CPU, "onnxruntime", data, ())) == []
    row = quantize.run(runner.model, work).details["calibration"]
    assert row["fingerprint"]
    assert (row["sequences"], row["tokens"]) == {"llama": (32, 1024), "bert": (32, 32 * 32), "resnet": (16, 0)}[family]


# Outliers: why SmoothQuant and AWQ exist.


def with_outliers(folder: Path) -> Runner:
    """A llama whose norms make four channels fifty times as large; the weights behind make up for it."""
    runner = Runner(folder, "llama")
    module = open_model(runner.model)
    assert isinstance(module, Decoder)
    for layer in module.layers:
        for norm, linear in ((layer.norm_in, layer.qkv), (layer.norm_mlp, layer.gate_up)):
            norm.weight[[3, 17, 31, 50]] *= 50
            linear.weight[:, [3, 17, 31, 50]] /= 50
    from openclaw_opt.models.store import save_model

    runner.model = save_model(module, read_facts(runner.model), folder / "outliers", runner.model.assets)
    return runner


@pytest.mark.parametrize(
    ("fmt", "plain", "better", "gain"), [("int8", "max", "smoothquant", 6), ("int4", "rtn", "awq", 1)]
)
def test_scaled_inputs_win_where_channels_stick_out(
    tmp_path: Path, fmt: str, plain: str, better: str, gain: float
) -> None:
    runner = with_outliers(tmp_path)
    errors = []
    for algorithm in (plain, better):
        done = runner(tokens(), format=fmt, algorithm=algorithm)
        rows = {row["name"]: row["output_sqnr_db"] for row in done.details["layers"]}
        errors.append([rows[f"layers.{i}.{part}"] for i in (0, 1) for part in ("qkv", "gate_up")])
    assert all(smooth > rough + gain for rough, smooth in zip(*errors, strict=True)), errors


def test_alpha_zero_moves_the_weights_range_and_one_the_activations(tmp_path: Path) -> None:
    runner = with_outliers(tmp_path)
    sides = []
    for alpha in (0.0, 1.0):
        job = Scheme("int8", "smoothquant", alpha)
        module = open_model(runner.model)
        modelopt.calibrated(module, ["layers.0.qkv"], job, tokens(), silent)
        layer = module.get_submodule("layers.0.qkv")
        sides.append(
            (
                layer.weight.abs().amax(0),
                layer.input_quantizer._amax_for_smoothing * layer.input_quantizer.pre_quant_scale,
            )
        )
    weights, inputs = sides[0][0], sides[1][1]
    assert weights.std() / weights.mean() < 1e-3  # alpha 0: every weight column has one range
    assert inputs.std() / inputs.mean() < 1e-3  # alpha 1: every input channel has one


# Factors move exactly, and a wrong move is caught.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "factors_left"),
    [("llama", ("o",)), ("gpt2", ("down",)), ("gemma3", ("o",)), ("phi3", ("o",)), ("qwen2", ("o",))],
)
@pytest.mark.parametrize(("fmt", "algorithm"), [("int8", "smoothquant"), ("int4", "awq")])
def test_folding_is_exact(tmp_path: Path, family: str, factors_left: tuple[str, ...], fmt: str, algorithm: str) -> None:
    runner = Runner(tmp_path, family)
    names = [name for name in linear_sizes(read_facts(runner.model).spec) if name != "head"]
    scheme = Scheme(fmt, algorithm, 0.5, 32 if fmt == "int4" else None)  # type: ignore[arg-type]
    theirs, ours = open_model(runner.model), open_model(runner.model)
    modelopt.calibrated(theirs, names, scheme, tokens(), silent)
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(ours.get_submodule(parent), leaf, modelopt.layer_of(theirs.get_submodule(name), scheme))
    assert isinstance(ours, Decoder)
    batch = tokens(2).batches[0]
    with folding.inputs_unquantized(ours), torch.no_grad():
        before = ours(*batch)[0]
        folded = folding.fold(ours, batch)
        after = ours(*batch)[0]
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    left = [name for name in names if ours.get_submodule(name).pre_scale is not None]  # type: ignore[union-attr]
    assert sorted(folded + left) == sorted(names)
    assert {name.rsplit(".", 1)[1] for name in left} == set(factors_left)


def test_heads_of_their_own_take_the_factors_of_o(tmp_path: Path) -> None:
    done = Runner(tmp_path, "llama", num_key_value_heads=4)(tokens(), format="int8")
    assert done.details["folded"][:4] == ["layers.0.o", "layers.0.down", "layers.0.qkv", "layers.0.gate_up"]
    assert not any(quant.pre_scale for quant in read_facts(done.artifact).quant.values())


def test_a_wrong_fold_is_caught(llama: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    right = folding._scaled
    monkeypatch.setattr(folding, "_scaled", lambda value, rows, factors: right(value, rows, factors.flip(0)))
    with pytest.raises(VerificationError, match=r"layers\.0: moving input factors into the layers before changed"):
        llama(tokens(), format="int8", algorithm="smoothquant")


@pytest.mark.parametrize("damage", ["weight_scale", "input_scale", "weight_q"])
def test_a_wrong_conversion_is_caught(llama: Runner, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    right = modelopt.parts_of

    def wrong(layer: Any, scheme: Scheme, grid: Any) -> Any:
        parts = right(layer, scheme, grid)
        value = getattr(parts, damage).clone()
        if damage == "weight_q":
            value[0, 0] += 2 if value[0, 0] < 100 else -2
        else:
            value *= 1.001
        return replace(parts, **{damage: value})

    monkeypatch.setattr(modelopt, "parts_of", wrong)
    with pytest.raises(
        VerificationError, match=r"layers\.0\.qkv: the quantized layer differs from the fake-quantized one"
    ):
        llama(tokens(), format="int8", algorithm="max")


def test_modelopt_stays_quiet_and_progress_does_not(llama: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    module = open_model(llama.model)
    scheme = Scheme("int4", "awq", None, 32)
    modelopt.calibrated(module, ["layers.0.qkv"], scheme, tokens(), lambda part, text: (said.append(text), print(text)))  # type: ignore[func-returns-value]
    out = capsys.readouterr()
    assert out.out.splitlines() == said
    assert said[0] == "awq, batch 1 of 2"
    assert out.err == ""


# What cannot be done: from facts alone, or, where these do not tell, before any work.


def spec_of(family: str, folder: Path) -> Any:
    return spec_from_config(open_tiny(write_checkpoint(folder, family)).config)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return spec_of("llama", tmp_path_factory.mktemp("spec"))


def complaints(quantize: Quantize, spec: Any, **changes: Any) -> list[tuple[str, str, str]]:
    view = View(
        **{"spec": spec, "target": CPU, "backend": "onnxruntime", "calibration": TEXT, "earlier": (), **changes}
    )
    return [(found.what, found.option, found.fix) for found in quantize.check(view)]


def on(target: str) -> dict[str, Any]:
    return {"target": TARGETS[target], "backend": "tensorrt"}


SHORT = Source.model_construct(split="calibration", samples=2, length=64, seed=0)
IMAGES = type("Pictures", (Source,), {"kind": "images"}).model_construct(split="a", samples=1, length=1)
LACKS = ("tensorrt does not realise fp8 on NVIDIA A100 80 GB SXM", "tensorrt does not realise nvfp4 on NVIDIA H100 SXM")
MORE = "raise data.calibration.samples, or algorithm: max"
CASES: list[tuple[dict[str, Any], dict[str, Any], tuple[str, str, str] | None]] = [
    ({"format": "int8"}, {}, None),
    ({"format": "int8", "alpha": 0.7, "keep": ("layers.0.*", "head")}, {}, None),
    ({"format": "fp8"}, on("l4"), None),
    ({"format": "nvfp4"}, on("rtx5090"), None),
    ({"format": "int4", "algorithm": "rtn"}, {"calibration": None}, None),
    ({"format": "fp8"}, {}, ("onnxruntime does not realise fp8 on a CPU", "format", "format: int8")),
    ({"format": "fp8"}, on("a100-80"), (f"{LACKS[0]}: it needs compute capability 8.9, the target has 8.0", "format", "format: int8")),
    ({"format": "nvfp4"}, on("h100-sxm"), (f"{LACKS[1]}: it needs compute capability 10.0, the target has 9.0", "format", "format: fp8")),
    ({"format": "int4", "algorithm": "smoothquant"}, {}, ("smoothquant is no algorithm for int4", "algorithm", "legal: awq, awq_full, awq_gptq, gptq, rtn")),
    ({"format": "fp8", "algorithm": "awq"}, on("l4"), ("awq is no algorithm for fp8", "algorithm", "algorithm: max")),
    ({"format": "int8", "algorithm": "max", "alpha": 0.5}, {}, ("alpha has no effect with max", "alpha", "leave it out")),
    ({"format": "int8", "block": 32}, {}, ("block has no effect with int8", "block", "leave it out")),
    ({"format": "nvfp4", "block": 32}, on("rtx5090"), ("nvfp4 has blocks of 16, not 32", "block", "leave it out")),
    ({"format": "int4", "block": 40}, {}, ("no runtime has blocks of 40", "block", "block: 32")),
    ({"format": "int4", "block": 128}, {}, ("blocks of 128 do not divide the 64 inputs of layers.0.qkv", "block", "block: 32")),
    ({"format": "int4", "block": 64}, {}, ("blocks of 64 do not divide the 96 inputs of layers.0.down", "block", "block: 32")),
    ({"format": "uint4"}, on("l4"), ("tensorrt does not realise uint4 on NVIDIA L4: it takes no zero point but 0", "format", "format: int4")),
    ({"format": "int4", "algorithm": "gptq", "damping": 0.1, "act_order": False}, {}, None),
    ({"format": "int4", "sweeps": 0}, {}, None),
    ({"format": "int4", "algorithm": "rtn", "sweeps": 2}, {}, ("sweeps has no effect with rtn", "sweeps", "leave it out")),
    ({"format": "int4", "algorithm": "awq", "damping": 0.1}, {}, ("damping has no effect with awq", "damping", "leave it out")),
    ({"format": "int8", "act_order": True}, {}, ("act_order has no effect with smoothquant", "act_order", "leave it out")),
    ({"format": "fp8", "calibration": "entropy"}, on("l4"), ("fp8 has no entropy calibration", "calibration", "legal: max, percentile, mse")),
    ({"format": "int4", "algorithm": "awq", "calibration": "mse"}, {}, ("awq finds its own ranges", "calibration", "leave it out")),
    ({"format": "fp8", "per_channel": True}, on("l4"), None),
    ({"format": "int8", "algorithm": "max", "per_channel": True}, {}, ("per_channel has no effect with int8", "per_channel", "leave it out")),
    ({"format": "int8", "percentile": 99.9}, {}, ("percentile has no effect without it", "percentile", "calibration: percentile")),
    ({"format": "int4"}, {"calibration": None}, ("int4 with gptq needs calibration data", "algorithm", "add `calibration` to `data`")),
    ({"format": "int8"}, {"calibration": None}, ("int8 with smoothquant needs calibration data", "algorithm", "add `calibration` to `data`")),
    ({"format": "int4", "algorithm": "awq"}, {"calibration": None}, ("int4 with awq needs calibration data", "algorithm", "add `calibration` to `data`")),
    ({"format": "int8"}, {"calibration": IMAGES}, ("calibration data is images, the model takes text", "", "change data.calibration")),
    ({"format": "int8"}, {"calibration": SHORT}, ("smoothquant needs at least 1024 calibration tokens, samples × length is 128", "algorithm", MORE)),
    ({"format": "int8", "keep": ("lm_head",)}, {}, ("keep: 'lm_head' matches no layer", "keep", "did you mean 'head'?")),
    ({"format": "int8", "keep": ("layers.9.*",)}, {}, ("keep: 'layers.9.*' matches no layer", "keep", "did you mean 'layers.1.*'?")),
    ({"format": "int8", "keep": ("*",)}, {}, ("keep leaves no layer to quantize", "keep", "keep: [head]")),
]  # fmt: skip


@pytest.mark.parametrize(("options", "changes", "wanted"), CASES)
def test_each_complaint(
    spec: Any, options: dict[str, Any], changes: dict[str, Any], wanted: tuple[str, str, str] | None
) -> None:
    found = complaints(Quantize(**options), spec, **changes)
    assert found == ([] if wanted is None else [wanted])


def test_a_layer_that_no_block_divides_is_to_be_kept(spec: Any) -> None:
    odd = spec.model_copy(update={"layers": (LayerSpec(q_heads=4, kv_heads=2, ffn=100),)})
    (found,) = complaints(Quantize(format="int4"), odd)
    assert found == ("blocks of 32 do not divide the 100 inputs of layers.0.down", "block", "keep: [head, *.down]")
    assert complaints(Quantize(format="int4", keep=("head", "*.down")), odd) == []


def test_resnet_has_no_layer_for_four_bits(tmp_path: Path) -> None:
    found = complaints(Quantize(format="int4", algorithm="rtn"), spec_of("resnet", tmp_path), calibration=None)
    assert found == [("int4 has no convolution, and resnet has no other layer", "format", "format: int8")]


def test_sizes_after_prune_are_looked_at_by_run(spec: Any) -> None:
    assert complaints(Quantize(format="int4", block=64), spec, earlier=(Prune(ffn=0.4),)) == []


def test_run_refuses_what_check_could_not_see(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "bert")
    with pytest.raises(RecipeError) as caught:
        runner(sentences(), format="int8", keep=("model.encoder.layer.0.*", "encoder.layer.1.*"))
    assert "quantize.keep: keep: 'encoder.layer.1.*' matches no layer" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "why", "fix"),
    [
        ({"format": "w4a8"}, "format: w4a8 is not realised: neither backend takes INT4 weights with", "format: int4"),
        ({"format": "mxfp8"}, "format: mxfp8 is not realised: TensorRT takes it, expands the weights", "format: fp8"),
        (
            {"format": "nvfp4_weight_only"},
            "format: nvfp4_weight_only is not realised: TensorRT takes it",
            "format: nvfp4",
        ),
        ({"format": "svdquant"}, "format: svdquant is not realised: its low-rank half", "format: nvfp4"),
        (
            {"format": "int8", "kv_cache": "fp8"},
            "kv_cache: fp8 is not realised: ONNX Runtime has no such kernel on a CPU",
            "kv_cache: int8",
        ),
    ],
)
def test_what_nothing_realises_is_refused_with_the_reason(options: dict[str, str], why: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Quantize(**options)  # type: ignore[arg-type]
    assert caught.value.what.startswith(why)
    assert caught.value.fix.startswith(fix)


def test_fp8_by_channel_is_proven_and_loses_less(llama: Runner) -> None:
    whole, channel = (llama(tokens(), format="fp8", per_channel=choice) for choice in (False, True))
    layer = open_model(channel.artifact).get_submodule("layers.0.qkv")
    assert isinstance(layer, QuantLinear)
    assert layer.weight_scale.shape == (128,)
    assert channel.changed == "8 of 9 linear layers to fp8 (max, per channel)"
    assert channel.details["largest_difference_from_fake_quantized"] < 1e-6
    assert whole.details["layers"][0]["weight_sqnr_db"] != channel.details["layers"][0]["weight_sqnr_db"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(llama: Runner, tmp_path: Path, value: float) -> None:
    from openclaw_opt.models.store import save_model

    module = open_model(llama.model)
    assert isinstance(module, Decoder)
    module.layers[1].down.weight[3, 4] = value
    broken = save_model(module, read_facts(llama.model), tmp_path / "broken", llama.model.assets)
    with pytest.raises(RecipeError, match=r"layers\.1\.down\.weight: 1 of 6144 numbers are NaN or infinite"):
        llama(tokens(), broken, format="int4", algorithm="rtn")


def test_broken_activations_are_named(llama: Runner, tmp_path: Path) -> None:
    from openclaw_opt.models.store import save_model

    module = open_model(llama.model)
    assert isinstance(module, Decoder)
    module.layers[0].norm_mlp.weight[:] = float("inf")
    broken = save_model(module, read_facts(llama.model), tmp_path / "broken", llama.model.assets)
    with pytest.raises(RecipeError, match=r"layers\.0\.gate_up: its input holds NaN or infinity on calibration data"):
        llama(tokens(), broken, format="int8", algorithm="max")


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["percentile", "mse", "entropy"])
def test_ranges_from_histograms_are_narrower_and_recorded(llama: Runner, ranges: str) -> None:
    widest, found = (
        open_model(llama(tokens(), format="int8", algorithm="max", calibration=word).artifact)
        for word in ("max", ranges)
    )
    for name in ("layers.0.qkv", "layers.1.down"):
        assert found.get_submodule(name).input_scale <= widest.get_submodule(name).input_scale  # type: ignore[operator]
    narrow = [
        found.get_submodule(f"layers.{i}.down").input_scale < widest.get_submodule(f"layers.{i}.down").input_scale
        for i in (0, 1)
    ]  # type: ignore[operator]
    assert any(narrow)
    done = llama(tokens(), format="int8", algorithm="max", calibration="percentile", percentile=99.0)
    assert done.changed == "8 of 9 linear layers to int8 (max, percentile 99)"
    assert done.details["calibration"]["percentile"] == 99.0


def test_too_few_vectors_for_smoothquant_are_counted(tmp_path: Path) -> None:
    runner = Runner(tmp_path, "vit")
    with pytest.raises(RecipeError, match=r"smoothquant needs at least 1024 calibration vectors, .* sees 544"):
        runner(pictures(3, 16), format="int8", algorithm="smoothquant")


def test_sequences_longer_than_the_context_are_refused(
    llama: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = type("Tokens", (), {"sequences": torch.zeros(2, 65, dtype=torch.long).numpy(), "fingerprint": "x"})
    monkeypatch.setattr(calibrate, "load_tokens", lambda *_: long)
    with pytest.raises(
        RecipeError, match="calibration sequences of 65 tokens are longer than the model's context of 64"
    ):
        calibrate.load_calibration(TEXT, read_facts(llama.model), llama.model, tmp_path, 1)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_between_zero_and_one(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        Quantize(format="int8", alpha=alpha)
