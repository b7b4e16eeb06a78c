"""A recipe may import files near it, and leaves no trace in the process."""

import subprocess
import sys
import types

import pytest

from hybridlm import config
from hybridlm.config.load import recipe, sweep
from hybridlm.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Writes files {name: text} below a folder; returns the folder."""

    def files(texts):
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return files


@pytest.fixture(autouse=True)
def no_trace_is_left(root, tmp_path):
    """After each test, `sys.path`, the finders and the loaded modules are as before."""
    before, modules = (list(sys.path), list(sys.meta_path)), set(sys.modules)
    yield
    assert (list(sys.path), list(sys.meta_path)) == before
    folders = (str(root / "configs"), str(tmp_path))
    new = {
        n: getattr(m, "__file__", None) or "" for n, m in sys.modules.items() if n not in modules
    }
    assert not [name for name, file in new.items() if file.startswith(folders)]


READS_HELP = "import help_\n\n\ndef get_config():\n    return dict(seed=help_.SEED)\n"
SWEEPS = "\n\ndef sweep():\n    import help_\n\n    yield dict(seed=help_.SEED)\n"


def test_a_recipe_imports_from_its_folder_first_and_then_from_the_one_above(write):
    root = write({"help_.py": "SEED = 1\n", "top.py": READS_HELP, "below/low.py": READS_HELP})
    assert recipe(str(root / "top.py")) == recipe(str(root / "below/low.py")) == {"seed": 1}
    write({"below/help_.py": "SEED = 2\n"})
    assert recipe(str(root / "below/low.py")) == {"seed": 2}
    assert recipe(str(root / "top.py")) == {"seed": 1}
    write({"below/deep/far.py": READS_HELP.replace("help_", "top"), "below/deep/top.py": "SEED=3"})
    assert recipe(str(root / "below/deep/far.py")) == {"seed": 3}


def test_helpers_of_one_name_in_two_folders_do_not_mix(write):
    """Also if a helper imports another helper, and if functions import helpers."""
    texts = {"recipe.py": READS_HELP + SWEEPS, "help_.py": "from helpers_help import SEED\n"}
    for name, seed in (("a", 1), ("b", 2)):
        write({f"{name}/{file}": text for file, text in texts.items()})
        root = write({f"{name}/helpers_help.py": f"SEED = {seed}\n"})
    for name, seed in (("a", 1), ("b", 2), ("a", 1)):
        assert recipe(str(root / name / "recipe.py")) == {"seed": seed}
        assert sweep(str(root / name / "recipe.py")) == [{"seed": str(seed)}]


def test_a_recipe_that_loads_another_keeps_its_own_helpers(write):
    """The inner recipe does not see the helpers of the outer one."""
    outer = (
        "import help_\nfrom hybridlm.config.load import recipe\n\n\n"
        "def get_config():\n"
        "    inner = recipe(__file__.replace('outer', 'inner'))\n"
        "    import help_ as again\n\n"
        "    return dict(seed=100 * again.SEED + 10 * help_.SEED + inner['seed'])\n"
    )
    root = write({"outer/recipe.py": outer, "outer/help_.py": "SEED = 1\n"})
    write({"inner/recipe.py": READS_HELP, "inner/help_.py": "SEED = 2\n"})
    assert recipe(str(root / "outer/recipe.py")) == {"seed": 112}
    (root / "inner/help_.py").unlink()
    with pytest.raises(ConfigError, match="inner/recipe.py cannot be run: ModuleNotFoundError"):
        recipe(str(root / "outer/recipe.py"))


def test_a_module_with_a_helpers_name_is_restored(write, monkeypatch):
    root = write({"help_.py": "SEED = 1\n", "recipe.py": READS_HELP})
    other = types.ModuleType("help_")
    monkeypatch.setitem(sys.modules, "help_", other)
    assert recipe(str(root / "recipe.py")) == {"seed": 1}
    assert sys.modules["help_"] is other


def test_the_standard_library_and_imported_packages_keep_their_names(write):
    text = "import random, numpy\n\n\ndef get_config():\n    return dict(seed=len(numpy.ones(3)))\n"
    root = write({"random.py": "1 / 0\n", "numpy.py": "1 / 0\n", "recipe.py": text})
    assert recipe(str(root / "recipe.py")) == {"seed": 3}


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "ModuleNotFoundError: No module named 'help_'"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError: "),
        ("raise ValueError('one\\ntwo')\n", "ValueError: one two"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("", "failed: AttributeError: module 'help_' has no attribute 'SEED'"),
    ],
)
def test_a_helper_that_fails_gives_one_sentence(write, text, sentence):
    root = write({"recipe.py": READS_HELP, **({} if text is None else {"help_.py": text})})
    with pytest.raises(ConfigError) as error:
        recipe(str(root / "recipe.py"))
    assert str(root / "recipe.py") in str(error.value)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_is_read_from_any_working_directory(root, write, monkeypatch):
    """By an absolute path, by its file name and by a path with `..`."""
    folder = write({"help_.py": "SEED = 4\n", "below/recipe.py": READS_HELP})
    monkeypatch.chdir(folder / "below")
    for spec in ("recipe.py", "./recipe.py", "../below/recipe.py", str(folder / "below/recipe.py")):
        assert recipe(spec) == {"seed": 4}, spec
    there = config.load(f"{root / 'configs/mixers/gdn.py'}:smoke")
    monkeypatch.chdir(root)
    assert config.load("configs/mixers/gdn.py:smoke") == there


def test_recipe_module_gives_the_definitions_of_a_recipe(root):
    matrix = config.recipe_module(root / "configs/laziness.py")
    assert list(matrix.SIZES)[0] == "S1" and matrix.get_config("S1").seed == 0
    with pytest.raises(ConfigError, match="lazines.py, which is not a file.*'laziness.py'"):
        config.recipe_module(root / "configs/lazines.py")


def test_recipes_do_not_depend_on_the_working_directory_of_the_process(root, tmp_path):
    """A new process in another folder loads them, as the installed command does."""
    recipes = ("demo.py", "laziness.py", "mixers/gdn.py", "scale/hybrid_1b.py", "sweeps/window.py")
    code = (
        "import sys; from hybridlm import config;"
        "[config.load(f'{path}:smoke') for path in sys.argv[1:]];"
        "print(config.sweep(sys.argv[-1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(root / "configs" / name) for name in recipes)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "model.mixers.swa.window" in done.stdout
