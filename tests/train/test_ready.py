"""What a run will need is checked before a device is touched: one sentence for what is missing."""

import subprocess
import sys

import pytest

from hybridlm import config as configs
from hybridlm.data.shards import FORMAT, VERSION, write_manifest
from hybridlm.data.sources import KINDS
from hybridlm.errors import UserError
from hybridlm.train.ready import check_ready

DEMO = "configs/demo.py:smoke"


def demo(**overrides):
    return configs.load(DEMO, [(k.replace("__", "."), repr(v)) for k, v in overrides.items()])


@pytest.fixture
def without(monkeypatch):
    """Makes the import of a module fail, as if it were not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("module", "setting", "value", "install"),
    [
        ("wandb", "train__wandb", "project", "hybridlm[wandb]"),
        ("tensorboardX", "train__tensorboard", True, "pip install tensorboardX"),
    ],
)
def test_a_missing_package_is_named_with_the_setting(
    module, setting, value, install, without, in_root
):
    without(module)
    with pytest.raises(UserError, match=f"^{setting.replace('__', '.')} needs") as caught:
        check_ready(demo(**{setting: value}))
    assert install in str(caught.value) and "\n" not in str(caught.value)
    check_ready(demo(**{setting: None if module == "wandb" else False}))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrayrecord"])
def test_a_missing_package_of_a_source_is_named(kind, without, in_root, tmp_path):
    without("pyarrow")
    without("array_record.python.array_record_module")
    config = demo(data__sources__more=dict(kind=kind, path=str(tmp_path)))
    with pytest.raises(UserError, match=r"data\.sources\.more of kind .*hybridlm\[data\]"):
        check_ready(config, files=False)


def test_missing_files_are_found_only_where_they_must_be_there(in_root, tmp_path):
    config = demo(data__sources__addresses__path=str(tmp_path / "nothing.jsonl"))
    check_ready(config, files=False)
    with pytest.raises(UserError, match=r"^data\.sources\.addresses: .*nothing\.jsonl"):
        check_ready(config)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_every_kind_of_source_are_looked_for(kind, in_root, tmp_path):
    """The held-out ones too, and every shard of a folder of shards."""
    names = {"tokens": ["manifest.json", "train-00000.bin", "train-00000.idx"]}
    names = names.get(kind, ["w.bin", "w.idx"] if kind == "megatron" else ["a"])
    folder = tmp_path / "d"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    if kind == "tokens":
        splits = {"train": {"shards": [{"name": "train-00000"}]}, "heldout": {"shards": []}}
        write_manifest(folder, {"format": FORMAT, "version": VERSION, "splits": splits})

    def check(**settings):
        check_ready(demo(data__sources__more=dict(kind=kind, **settings)))

    check(path=str(folder))
    with pytest.raises(UserError, match=r"^data\.sources\.more: [^\n]*none"):
        check(path=str(tmp_path / "none"))
    if "heldout_path" in KINDS[kind].__dataclass_fields__:
        more = {"ids_key": "ids"} if kind in ("arrow", "parquet") else {}
        with pytest.raises(UserError, match=r"^data\.sources\.more: [^\n]*none"):
            check(path=str(folder), heldout_path=str(tmp_path / "none"), **more)
    (folder / names[-1]).unlink()
    with pytest.raises(UserError, match=r"^data\.sources\.more: "):
        check(path=str(folder))


@pytest.mark.parametrize(
    ("mesh", "devices", "sentence"),
    [
        (dict(data=1, tensor=3), None, "heads 4 does not divide over 3 shards"),
        (dict(data=-1, fsdp=3), None, "data.batch_size 4 does not divide over 3 shards"),
        (dict(data=-1, fsdp=2), 3, "mesh needs a multiple of 2 devices, but there are 3"),
        (dict(data=1, fsdp=1), 2, "has 1 devices, but there are 2"),
        (dict(data=-1), 8, "data.batch_size 4 does not divide over 8 shards"),
        (dict(data=-1, fsdp=2), 4, None),
    ],
)
def test_a_mesh_is_checked_as_far_as_devices_are_known(mesh, devices, sentence, in_root):
    config = demo(**{f"mesh__{axis}": size for axis, size in mesh.items()})
    if sentence is None:
        check_ready(config, devices=devices)
        return
    with pytest.raises(UserError, match=sentence):
        check_ready(config, devices=devices)


def test_probes_whose_prompts_do_not_fit_are_refused(in_root):
    with pytest.raises(UserError, match="fit"):
        check_ready(demo(probes__which=("heads",), probes__length=40))


def test_checking_starts_no_device(in_root):
    """In a new process: this one has used its devices."""
    code = (
        "from hybridlm import config as configs; from hybridlm.train.ready import check_ready;"
        f"check_ready(configs.load({DEMO!r}, [('probes.which', '[\"heads\"]'),"
        " ('probes.length', '160')]));"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--dry_run"], ["--workdir", "never"]])
def test_the_command_checks_first(words, without, refusal, in_root):
    without("wandb")
    said = refusal("train", "--config", DEMO, *words, "--config.train.wandb=project")
    assert "train.wandb needs wandb" in said and not (in_root / "never").exists()


def test_zstandard_is_asked_for_where_a_file_needs_it(without, in_root, tmp_path):
    without("zstandard")
    (tmp_path / "a.jsonl").write_bytes(b"")
    check_ready(demo(data__sources__more=dict(kind="jsonl", path=str(tmp_path))))
    (tmp_path / "b.jsonl.zst").write_bytes(b"")
    with pytest.raises(UserError, match=r"^data\.sources\.more: .*zstandard.*hybridlm\[data\]"):
        check_ready(demo(data__sources__more=dict(kind="jsonl", path=str(tmp_path))))


def test_a_chat_template_and_its_package_are_looked_for(without, in_root, tmp_path):
    path, template = tmp_path / "a.jsonl", tmp_path / "t.jinja"
    path.write_bytes(b"")

    def check(files=True, **settings):
        source = dict(kind="chat", path=str(path), **settings)
        check_ready(demo(data__sources__more=source), files=files)

    missing = r"^data\.sources\.more: the chat template .*t\.jinja cannot be read \(No such file"
    with pytest.raises(UserError, match=missing):
        check(template=str(template))
    template.write_text("{{ messages }}")
    check(template=str(template))
    without("jinja2")
    check()
    for files in (True, False):
        with pytest.raises(UserError, match=r"^data\.sources\.more: .*jinja2.*hybridlm\[hf\]"):
            check(files, template=str(template))
