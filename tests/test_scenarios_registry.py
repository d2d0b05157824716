"""Look-ups by name, alias, Hugging Face id and path; no two files answer to one name; a look-up parses few files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roofplan.scenarios import registry
from roofplan.scenarios.errors import BadFile, BadInput, UnknownName
from roofplan.scenarios.load import names, read_toml

FOLDERS = ["models", "hardware", "links", "clusters", "frameworks"]
TINY = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 128,
    "vocab_size": 100, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("llama3-8b", "llama3-8b"),
        ("Llama-3-8B", "llama3-8b"),
        ("meta-llama/Meta-Llama-3-8B", "llama3-8b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1-8b"),
        ("LLAMA_3.1_405B", "llama3.1-405b"),
        ("llama3-405b", "llama3.1-405b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("gpt-529.6b", "megatron-529.6b"),
        ("turing-530B", "megatron-529.6b"),
        ("megatron-1T", "megatron-1008b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-r1"),
        ("mpt-30b", "mpt-30b"),
    ],
)
def test_model_by_name(name: str, found: str) -> None:
    assert registry.model(name).name == found


@pytest.mark.parametrize(("name", "found"), [("a100_sxm", "a100-80gb-sxm"), ("H200", "h200"), ("H100-80GB", "h100-sxm"), ("B200", "b200")])
def test_accelerator_by_the_data_files_spelling(name: str, found: str) -> None:
    assert registry.accelerator(name).name == found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_and_alias_finds_its_own_file(folder: str) -> None:
    for stem, path in names(folder).items():
        data = read_toml(path)
        for name in [stem, *data.get("aliases", []), *data.get("hf_ids", [])]:
            assert registry.find(folder, name) == stem, f"{name!r} of {folder}/{stem}.toml"
            assert registry.find(folder, name.upper().replace("-", "_")) == stem


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown model 'lama3-8b'; nearest: llama3-8b"):
        registry.model("lama3-8b")
    with pytest.raises(UnknownName, match="unknown GPU 'h300'; nearest: "):
        registry.accelerator("h300")
    with pytest.raises(UnknownName, match="unknown link"):
        registry.link("carrier-pigeon")
    with pytest.raises(UnknownName, match="unknown framework"):
        registry.framework("")
    with pytest.raises(UnknownName, match="unknown model ''"):
        registry.model("")


@pytest.mark.parametrize("name", ["\0", "x" * 100_000, "a/b/c", "ü", "--", "../../etc/nothing-here", "nonesuch.toml"])
def test_odd_model_names_are_one_sentence(name: str) -> None:
    with pytest.raises(BadInput) as error:
        registry.model(name)
    assert "\n" not in str(error.value)


def test_model_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    for path in (str(folder), str(folder / "config.json")):
        assert registry.model(path).name == "my-tiny"
        assert registry.model(path).hidden == 64
    monkeypatch.chdir(tmp_path)
    assert registry.model("my-tiny").name == "my-tiny"
    assert registry.model("./my-tiny").name == "my-tiny"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry.model("~/my-tiny").name == "my-tiny"


def test_model_by_toml(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(names("models")["llama3-8b"].read_text())
    assert registry.model(str(file)).name == "mine"


def test_a_folder_does_not_hide_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama3-8b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert registry.model("llama3-8b").n_layers == 32
    with pytest.raises(BadFile, match=r"llama3-8b: this folder holds no config\.json"):
        registry.model("./llama3-8b")


def test_a_missing_path_is_a_bad_file() -> None:
    with pytest.raises(BadFile, match="cannot be read: No such file"):
        registry.model("./nowhere/config.json")


def test_cluster_of_a_gpu_or_by_its_own_name() -> None:
    assert registry.cluster("h100-sxm", 8).gpu == "h100-sxm"
    assert registry.cluster("H100", 16).n_nodes == 2
    assert registry.cluster("selene", 1024).gpu == "a100-80gb-sxm"
    with pytest.raises(BadInput, match="n_gpus=12 is not a whole number of nodes of 8; nearest: 8, 16"):
        registry.cluster("h100-sxm", 12)
    with pytest.raises(UnknownName, match="unknown GPU"):
        registry.cluster("tpu-v9", 8)


@pytest.mark.parametrize("gpu", sorted(names("hardware")))
def test_every_gpu_has_a_cluster_whose_parts_exist(gpu: str) -> None:
    cluster = registry.cluster(gpu, 1)
    assert registry.accelerator(cluster.gpu).name == gpu
    for link in (cluster.intra, cluster.inter, cluster.host_link):
        assert registry.link(link).bytes_per_s > 0


def test_a_look_up_parses_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold start: a stem opens its own file only; an alias parses the files whose text holds it."""
    parsed: list[Path] = []

    def counting(path: Path) -> dict[str, Any]:
        parsed.append(path)
        return read_toml(path)

    monkeypatch.setattr(registry, "read_toml", counting)
    registry.find("models", "llama3-8b")
    assert parsed == []
    registry.find("models", "meta-llama/Llama-3.1-70B-Instruct")
    assert len(parsed) <= 2


def test_no_heavy_imports_on_the_way() -> None:
    code = (
        "import sys; from roofplan.scenarios import registry; registry.model('meta-llama/Llama-3.1-70B'); registry.cluster('H100', 8);"
        "print([m for m in ('pandas', 'scipy', 'torch', 'plotly', 'pyarrow', 'pulp', 'simpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(st.text(max_size=60))
def test_any_text_is_a_model_or_one_sentence(name: str) -> None:
    try:
        assert registry.model(name).n_layers > 0
    except BadInput as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
